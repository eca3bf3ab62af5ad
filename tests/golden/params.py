"""Golden numbers of tests/engine/test_params.c: a fingerprint of each architecture's tensors, names and
shapes in state_dict order (the trained ones, then the running statistics), from torchvision and
resnet_cifar.py, and the number of trained values."""
import resnet_cifar
import rng


def fingerprint(model):
    state = {k: v for k, v in model.state_dict().items()
             if not k.startswith("fc.") and not k.endswith("num_batches_tracked")}
    running = [k for k in state if "running_" in k]
    trained = [k for k in state if "running_" not in k]
    text = "".join("%s %s\n" % (k, "x".join(map(str, state[k].shape))) for k in trained + running)
    return hex(rng.stream(text)), sum(state[k].numel() for k in trained)


for name in "resnet18", "resnet34", "resnet50", "resnet20", "resnet32", "resnet56":
    print(name, *fingerprint(resnet_cifar.build(name, 10)))
