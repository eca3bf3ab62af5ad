#!/usr/bin/env python3
"""Measures trunkd as its clients see it, for tests/bench/serving.sh, and prints tables of medians over the rounds.

For each input size each round measures, one after the other, so that a machine that grows warm or busy does so for all:

    one        the engine alone (engine_bench: passes of --batch images on --threads threads), then trunkctl bench: one
               tenant, closed loop with --concurrency calls in flight, one JPEG a call
    tenants    the same with the calls spread over --tenants tenants, each with a head of its own
    overload   open loop at 3 times what all tenants got, with a deadline: goodput, refusals and their latency, once
               it has lasted four deadlines
    ort        ONNX Runtime behind a gRPC server, one model for one tenant: closed loop; then both servers in open loop
               at 0.7 times what it got there
    models     ONNX Runtime with --models models, one for each of as many tenants, against trunkd with their heads:
               closed loop, mixed traffic, and what either keeps in memory then
    training   open loop at half of what one tenant got, without and with a job that trains meanwhile
    start      trunkd with --heads heads, from the start of the process until its port answers; the median of --starts

and, with the first size only, as it does not matter there:

    calls      health checks (what a call costs without a model) against an echo on the bare C core, same load generator
    swaps      once: soak.py's rollbacks under load, every answer checked

The peer is a Node server (@grpc/grpc-js, sharp, onnxruntime-node; peer_serving.js): Debian has no ONNX Runtime for
Python. An empty call of grpc-js costs about half of one of Python's grpcio, so it is the stronger peer.

Inference gets --threads threads, in trunkd and in its peer, by default one less than there are cores: decoding, RPC and
the load generator need the rest, and the engine alone is measured on as many. A ratio is of the same round; its median
is shown.
"""
import argparse
import csv
import os
import signal
import statistics
import sys

from engine import cpu
from serving_run import Process, Site, engine, swaps

PARTS = ['one', 'tenants', 'overload', 'ort', 'models', 'training', 'start', 'calls', 'swaps']


def options():
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(prog='serving.sh', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--bin', required=True, help=argparse.SUPPRESS)
    add('--peers', required=True, help=argparse.SUPPRESS)
    add('--results', help=argparse.SUPPRESS)
    add('--quick', action='store_true', help='one round of a second each, at 64 px with small batches')
    add('--only', help=f'some parts ({",".join(PARTS)})')
    add('--rounds', type=int, help='(3)')
    add('--seconds', type=float, help='of each measurement (10); passes are counted whole, so few make rough figures')
    add('--arch', default='resnet18', help='the trunk (resnet18)')
    add('--px', help='its input sizes (64,224)')
    add('--tenants', type=int, default=32, help='(32)')
    add('--models', type=int, default=8, help='of the peer, each a tenant\'s (8)')
    add('--heads', type=int, default=10, help='of the trunkd whose start is measured (10)')
    add('--starts', type=int, help='in each round (7)')
    add('--threads', type=int, default=max(1, cores - 1), help=f'of inference ({max(1, cores - 1)} here)')
    add('--batch', type=int, help="images of a pass at most, the engine's and the servers' (16)")
    add('--concurrency', type=int, help='calls in flight in the closed loop (4 times --batch)')
    add('--deadline-ms', type=int, default=1000, help='of calls under overload (1000)')
    add('--swaps', type=int, help='(200)')
    add('--csv', metavar='FILE', help='append a line for each run of trunkctl bench')
    o = parser.parse_args()
    o.rounds = o.rounds or (1 if o.quick else 3)
    o.seconds = o.seconds or (1 if o.quick else 10)
    o.warm_up = 0.2 if o.quick else 2
    o.batch = o.batch or (4 if o.quick else 16)
    o.px = [int(px) for px in (o.px or ('64' if o.quick else '64,224')).split(',')]
    o.starts = o.starts or (3 if o.quick else 7)
    o.swaps = o.swaps or (20 if o.quick else 200)
    o.concurrency = o.concurrency or 4 * o.batch
    o.parts = o.only.split(',') if o.only else PARTS
    if unknown := set(o.parts) - set(PARTS):
        parser.error(f'--only: there is no part {", ".join(sorted(unknown))}')
    if o.models > o.tenants:
        parser.error(f'--models is {o.models}, but there are {o.tenants} tenants')
    o.in_flight = ['--concurrency', str(o.concurrency)]
    return o


# -- measuring --

def rate(calls_a_second):
    return ['--rate', f'{max(1.0, calls_a_second):.3f}']


def measure_one(o, site, r):
    r['engine'] = engine(o, site.px)
    r['one'] = site.classify('--token-file', site.token, *o.in_flight)


def measure_tenants(o, site, r):
    r['many'] = site.classify('--tokens', site.tokens, *o.in_flight)


def measure_overload(o, site, r):
    r['overload'] = site.classify('--tokens', site.tokens, *rate(3 * r['many']['images_per_s']), '--deadline-ms',
                                  str(o.deadline_ms), warm_up=4 * o.deadline_ms / 1000)


def measure_ort(o, site, r):
    with site.peer(1) as peer:
        r['ort'] = site.classify('--token-file', site.token, *o.in_flight, at=peer)
        equal = rate(0.7 * r['ort']['images_per_s'])
        r['ort at rate'] = site.classify('--token-file', site.token, *equal, at=peer)
    r['one at rate'] = site.classify('--token-file', site.token, *equal)


def measure_models(o, site, r):
    with site.peer(o.models) as peer:
        r['models'] = site.classify('--tokens', site.few_tokens, *o.in_flight, at=peer)
        r['models memory'] = peer.mebibytes()
    r['heads'] = site.classify('--tokens', site.few_tokens, *o.in_flight)
    r['heads memory'] = site.trunkd.mebibytes()


def measure_training(o, site, r):
    half = ['--token-file', site.token, *rate(r['one']['images_per_s'] / 2)]
    r['calm'] = site.classify(*half)
    job = site.start_job()
    r['training'] = site.classify(*half)
    if not site.end_job(job):
        sys.exit('serving.sh: the job ended before the measurement: more pictures or epochs are needed')


def measure_start(o, site, r):
    with Site(o, site.px, o.heads) as few:
        r['start'] = statistics.median(few.start() for _ in range(o.starts))


def measure_calls(o, site, r):
    r['health'] = site.bench('--call', 'health', *o.in_flight)
    with Process('the echo', [f'{o.bin}/echo_server']) as echo:
        r['echo'] = site.bench('--call', 'health', *o.in_flight, at=echo)


def one_round(o, site, first_size):
    r = {}
    needed = set(o.parts)
    if 'overload' in needed:
        needed.add('tenants')
    if needed & {'tenants', 'training', 'ort'}:
        needed.add('one')
    for part in PARTS[:-1]:
        if part in needed and (part != 'calls' or first_size):
            globals()[f'measure_{part}'](o, site, r)
    return r


# -- showing --

def median(values):
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


class Table:
    """Of one input size, from the rounds' reports."""

    def __init__(self, rounds):
        self.rounds, self.rows = rounds, []

    def has(self, *kinds):
        return all(kind in self.rounds[0] for kind in kinds)

    def of(self, get):
        return median(get(r) for r in self.rounds)

    def add(self, name, value, text, target='', met=None):
        """A line; `value` None: nothing was measured. `text` formats it."""
        verdict = '' if not target else '-' if value is None else 'met' if met(value) else 'MISSED'
        self.rows.append((name, '-' if value is None else text.format(value), target, verdict, value))

    def at_least(self, name, get, of, least):
        self.add(name, self.of(get), '{:.3f} of ' + of, f'>= {least:g}', lambda v: v >= least)

    def at_most(self, name, get, text, most, unit=''):
        self.add(name, self.of(get), text, f'<= {most:g}{unit}', lambda v: v <= most)

    def images(self, kind, name):
        self.add(name, self.of(lambda r: r[kind]['images_per_s']), '{:.1f} images/s')

    def latencies(self, kind):
        for q, part in (('p50', 'half'), ('p99', '99 %')):
            self.add(f'  latency, {part} within', self.of(lambda r, q=q: latency(r, kind, q)), '{:.1f} ms')

    def stages(self, kind):
        """Where the time went, by the server's own account."""
        self.add('  images a pass', self.of(lambda r: (r[kind]['server'] or {}).get('batch_images')), '{:.1f}')
        for stage in ('decode', 'queue', 'trunk', 'head'):
            self.add(f'  {stage}, half within', self.of(lambda r, s=stage: stage_ms(r[kind], s)), '{:.2f} ms')
        self.add('  inference computed', self.of(lambda r: r[kind]['infer_ran']), '{:.1%} of the time')
        self.add('  inference waited for a core', self.of(lambda r: r[kind]['infer_waited']), '{:.1%} of the time')
        self.add('  the server took', self.of(lambda r: r[kind]['server_cpus']), '{:.2f} cores')
        self.add('  the generator took', self.of(lambda r: r[kind]['client_cpus']), '{:.2f} cores')

    def print(self):
        heading = ('MEASURE', 'MEDIAN', 'TARGET', '')
        widths = [max(len(row[i]) for row in [heading, *self.rows]) for i in range(4)]
        for row in [heading, *self.rows]:
            print('  '.join(row[i].ljust(widths[i]) for i in range(4)).rstrip())


def stage_ms(run, stage):
    return ((run['server'] or {}).get('stages', {}).get(stage) or {}).get('p50_ms')


def latency(r, kind, q, end='ok'):
    return r[kind]['latency_ms'][end][q]


def throughput(a, b):
    """A ratio of a round."""
    def get(r):
        return r[a]['images_per_s'] / r[b]['images_per_s'] if r[b]['images_per_s'] else None
    return get


def show_one(t, o):
    t.add(f'engine alone, {o.threads} thread{"s" if o.threads > 1 else ""}', t.of(lambda r: r['engine']), '{:.1f} images/s')
    t.images('one', '1 tenant')
    t.at_least('', lambda r: r['one']['images_per_s'] / r['engine'], 'the engine', 0.9)
    t.stages('one')
    t.latencies('one')


def show_tenants(t, o):
    t.images('many', f'{o.tenants} tenants')
    t.at_least('', throughput('many', 'one'), '1 tenant', 0.95)
    t.stages('many')
    t.latencies('many')


def show_overload(t, o):
    t.add(f'overload: goodput within {o.deadline_ms} ms', t.of(lambda r: r['overload']['goodput_images_per_s']),
          '{:.1f} images/s')
    t.at_least('', lambda r: r['overload']['goodput_images_per_s'] / r['many']['images_per_s'], f'{o.tenants} tenants', 0.9)
    t.add('  offered', t.of(lambda r: r['overload']['offered_per_s']), '{:.1f} images/s')
    t.add('  refusals, half within', t.of(lambda r: latency(r, 'overload', 'p50', 'refused')), '{:.2f} ms')
    t.at_most('  refusals, 99 % within', lambda r: latency(r, 'overload', 'p99', 'refused'), '{:.2f} ms', 10, ' ms')
    t.stages('overload')
    for code in sorted({code for r in t.rounds for code in r['overload']['codes']}):
        t.add(f'  {code}', t.of(lambda r, c=code: r['overload']['codes'].get(c, 0) / r['overload']['requests']),
              '{:.1%} of the calls')
    t.at_most('  neither answered nor refused', lambda r: r['overload']['failed'] / r['overload']['requests'],
              '{:.1%} of the calls', 0)
    t.add('  the generator was late by', t.of(lambda r: (r['overload']['start_lag_ms'] or {}).get('p99')), '{:.2f} ms (99 %)')


def show_ort(t, o):
    t.images('ort', 'ONNX Runtime, 1 tenant')
    t.latencies('ort')
    t.at_least('trunkd, 1 tenant', throughput('one', 'ort'), "the peer's", 1.5)
    t.add('open loop, 0.7 of that: 99 % within', t.of(lambda r: latency(r, 'ort at rate', 'p99')), '{:.1f} ms')
    t.at_most('  trunkd, 99 % within', lambda r: latency(r, 'one at rate', 'p99') / latency(r, 'ort at rate', 'p99'),
              "{:.3f} of the peer's", 1)


def show_models(t, o):
    t.images('models', f'ONNX Runtime, {o.models} models')
    t.add('  memory', t.of(lambda r: r['models memory']), '{:.0f} MiB')
    t.images('heads', f'trunkd, the same {o.models} tenants')
    t.at_least('', throughput('heads', 'models'), "the peer's", 1.5)
    t.add('  memory', t.of(lambda r: r['heads memory']), '{:.0f} MiB')
    t.at_most('', lambda r: r['heads memory'] / r['models memory'], "{:.3f} of the peer's", 0.25)


def show_training(t, o):
    t.add('half load: 99 % within', t.of(lambda r: latency(r, 'calm', 'p99')), '{:.1f} ms')
    t.add('  while a job trains', t.of(lambda r: latency(r, 'training', 'p99')), '{:.1f} ms')
    t.at_most('', lambda r: latency(r, 'training', 'p99') / latency(r, 'calm', 'p99'), '{:.3f} of that without', 1.5)


def show_start(t, o):
    t.at_most(f'start with {o.heads} heads, until the port answers', lambda r: r['start'], '{:.3f} s', 1, ' s')


def show_calls(t, o):
    t.add('health checks', t.of(lambda r: r['health']['requests_per_s']), '{:.0f} calls/s')
    t.add('echo on the C core', t.of(lambda r: r['echo']['requests_per_s']), '{:.0f} calls/s')
    t.at_least('', lambda r: r['health']['requests_per_s'] / r['echo']['requests_per_s'], 'the echo', 0.8)


def show_swaps(t, found):
    t.add('swaps under load', found['swaps']['value'], '{}')
    t.add('  answers', found['answers under load']['value'], '{}')
    for name in ('unexpected ends', 'wrong answers'):
        t.add(f'  {name}', found[name]['value'], '{}', '0', lambda v: v == 0)


def show(o, rounds, found):
    t = Table(rounds)
    for part, kinds in (('one', ['one']), ('tenants', ['many']), ('overload', ['overload']), ('ort', ['ort']),
                        ('models', ['models']), ('training', ['training']), ('start', ['start']), ('calls', ['echo'])):
        if t.has(*kinds):
            globals()[f'show_{part}'](t, o)
    if found:
        show_swaps(t, found)
    t.print()
    return t.rows


def record(o, machine, rows):
    """rows: (px, a table's row)."""
    os.makedirs(o.results, exist_ok=True)
    path = os.path.join(o.results, f'serving-{machine}.csv')
    with open(path, 'w', newline='') as file:
        out = csv.writer(file, lineterminator='\n')
        out.writerow(['px', 'measure', 'median', 'target', 'verdict'])
        group = ''
        for px, (name, text, target, verdict, _) in rows:
            group = name if name and not name.startswith(' ') else group
            out.writerow([px, name if name == group else f'{group}: {name.strip() or "ratio"}', text, target, verdict])
    print(f'\nall of it: {path}')


def main():
    o = options()
    name, machine = cpu()
    cores = len(os.sched_getaffinity(0))
    print(f'{name}\n{o.arch}, passes of at most {o.batch}, {o.threads} of {cores} cores for inference; {o.concurrency} calls '
          f'in flight; {o.rounds} round{"s" if o.rounds > 1 else ""} of {o.seconds:g} s each')
    rows = []
    found = swaps(o) if 'swaps' in o.parts else None
    for px in o.px:
        first = px == o.px[0]
        print(f'\n{px} px')
        sys.stdout.flush()
        rounds = []
        with Site(o, px, o.tenants) as site:
            for i in range(o.rounds):
                if sys.stderr.isatty():
                    print(f'\rround {i + 1} of {o.rounds}', end='', file=sys.stderr, flush=True)
                rounds.append(one_round(o, site, first))
        if sys.stderr.isatty():
            print('\r\033[K', end='', file=sys.stderr, flush=True)
        rows += [(px, row) for row in show(o, rounds, found if first else None)]
    if o.results:
        record(o, machine, rows)


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that no server is left
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
