"""engine/base/rng.c in numpy: the same numbers for the same (seed, stream, index).

`index` may be an array everywhere; `seed` and `stream` are integers. tests/engine/test_base.c holds
numbers of both languages, printed by running this file.
"""
import numpy as np

_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _mix(z):
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def u64(seed, stream, index):
    index = np.atleast_1d(np.asarray(index)).astype(np.uint64)
    with np.errstate(over="ignore"):
        key = _mix(np.array([(seed + _GAMMA * (stream + 1)) & _MASK], dtype=np.uint64))
        return _mix(key + np.uint64(_GAMMA) * (index + np.uint64(1)))


def uniform(seed, stream, index):
    """[0, 1) with 24 bits, float32."""
    return (u64(seed, stream, index) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def normal(seed, stream, index):
    """Box-Muller in double, rounded once to float32."""
    u = u64(seed, stream, index)
    u1 = ((u >> np.uint64(32)) + np.uint64(1)).astype(np.float64) * 2.0**-32
    u2 = (u & np.uint64(0xFFFFFFFF)).astype(np.float64) * 2.0**-32
    return (np.sqrt(-2.0 * np.log(u1)) * np.cos(6.283185307179586 * u2)).astype(np.float32)


def below(seed, stream, index, n):
    """[0, n); `n` may be an array as well."""
    high = u64(seed, stream, index) >> np.uint64(32)
    return ((high * np.asarray(n, dtype=np.uint64)) >> np.uint64(32)).astype(np.int64)


def permutation(seed, stream, n):
    out = np.arange(n)
    for i in range(n - 1, 0, -1):
        j = below(seed, stream, i, i + 1)[0]
        out[i], out[j] = out[j], out[i]
    return out


def stream(name):
    """FNV-1a of a name."""
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = ((value ^ byte) * 0x100000001B3) & _MASK
    return value


def init_trunk(shapes, seed):
    """tk_params_init() for a {name: shape} of torchvision's names: {name: float32 array}."""
    out = {}
    for name, shape in shapes.items():
        if len(shape) == 4:
            std = np.float32(np.sqrt(2.0 / (shape[2] * shape[3] * shape[0])))
            values = normal(seed, stream(name), np.arange(int(np.prod(shape))))
            out[name] = (std * values).reshape(shape)
        else:
            one = name.endswith(("weight", "running_var"))
            out[name] = np.full(shape, 1.0 if one else 0.0, dtype=np.float32)
    return out


if __name__ == "__main__":
    print("u64        ", [hex(v) for v in u64(7, 3, [0, 1, 2**40])])
    print("u64 extreme", hex(u64(2**64 - 1, 2**64 - 1, [2**64 - 1])[0]))
    print("uniform    ", [float(v).hex() for v in uniform(7, 3, range(4))])
    print("normal     ", [float(v).hex() for v in normal(7, 3, range(6))])
    print("below 10   ", list(below(7, 3, range(12), 10)))
    print("permutation", list(permutation(7, 3, 12)))
    print("stream     ", hex(stream("layer1.0.conv1.weight")), hex(stream("")))
    head = init_trunk({"conv1.weight": (16, 3, 3, 3)}, 42)["conv1.weight"].ravel()
    print("conv1      ", [float(v).hex() for v in head[[0, 1, 9, 27, 431]]])
