#!/usr/bin/env python3
"""Measures trunkd as its clients see it, for tests/bench/serving.sh, and prints a table of medians over the rounds.

Each round measures, one after the other, so that a machine that grows warm or busy does so for all of them:

    engine     engine_bench alone: forward passes of --batch images on --threads threads
    1 tenant   trunkctl bench, closed loop with --concurrency calls in flight, one image a call
    N tenants  the same with the calls spread over --tenants tenants, each with a head of its own
    overload   open loop at 3 times what N tenants got, with a deadline: goodput, refusals and their latency
    calls      GetStatus and health checks: what a call costs without a model

The server's inference gets --threads threads, by default one less than there are cores: decoding, RPC and the load
generator need the rest, and the engine alone is measured on as many. A ratio is of the same round, and its median is
shown. Targets: 1 tenant >= 0.90 of the engine; N tenants >= 0.95 of one; goodput under overload >= 0.90 of N tenants,
and 99 of 100 refusals within 10 ms.
"""
import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

PATIENCE = 120  # seconds for the server to start or end


def options():
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(prog='serving.sh', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--bin', required=True, help=argparse.SUPPRESS)
    add('--quick', action='store_true', help='one round of a second each, at 64 px with small batches')
    add('--rounds', type=int, help='(5)')
    add('--seconds', type=float, help='of each measurement (15); passes are counted whole, so few make rough figures')
    add('--arch', default='resnet18', help='the trunk (resnet18)')
    add('--px', type=int, help='its input size (224)')
    add('--tenants', type=int, default=32, help='(32)')
    add('--threads', type=int, default=max(1, cores - 1), help=f'of inference ({max(1, cores - 1)} here)')
    add('--batch', type=int, help="images of a pass, the engine's and the server's at most (16)")
    add('--concurrency', type=int, help='calls in flight in the closed loop (4 times --batch)')
    add('--deadline-ms', type=int, default=1000, help='of calls under overload (1000)')
    add('--csv', help='append a line for each run of trunkctl bench')
    o = parser.parse_args()
    o.rounds = o.rounds or (1 if o.quick else 5)
    o.seconds = o.seconds or (1 if o.quick else 15)
    o.warm_up = 0.2 if o.quick else 2
    o.batch = o.batch or (4 if o.quick else 16)
    o.px = o.px or (64 if o.quick else 224)
    o.concurrency = o.concurrency or 4 * o.batch
    return o


class Server:
    def __init__(self, o):
        self.o = o
        self.dir = tempfile.mkdtemp(prefix='trunkd-serving-')
        self.process = None

    def __enter__(self):
        o = self.o
        try:
            subprocess.run([f'{o.bin}/serving_store', self.dir, o.arch, str(o.px), str(o.tenants)], check=True)
            with open(f'{self.dir}/log', 'w') as log:
                self.process = subprocess.Popen(
                    [f'{o.bin}/trunkd', '--store', f'{self.dir}/store', '--listen', '127.0.0.1:0', '--port-file',
                     f'{self.dir}/port', '--threads', str(o.threads), '--batch', str(o.batch)], stderr=log)
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def wait(self):
        end = time.monotonic() + PATIENCE
        while not os.path.exists(f'{self.dir}/port'):
            if self.process.poll() is not None or time.monotonic() > end:
                with open(f'{self.dir}/log') as log:
                    sys.exit(f'serving.sh: trunkd did not start:\n{log.read()}')
            time.sleep(0.05)
        with open(f'{self.dir}/port') as port:
            self.address = f'127.0.0.1:{port.read().strip()}'

    def __exit__(self, *_):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def bench(self, *args):
        """A run's report."""
        o = self.o
        env = {k: v for k, v in os.environ.items() if not k.startswith('TRUNKD_')}
        env.update(TRUNKD_SERVER=self.address, XDG_CONFIG_HOME=f'{self.dir}/config')
        command = [f'{o.bin}/trunkctl', 'bench', '--json', '--seconds', str(o.seconds), '--warm-up', str(o.warm_up), *args]
        if o.csv:
            command += ['--csv', o.csv]
        run = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
        if not run.stdout:
            sys.exit('serving.sh: trunkctl bench failed')
        return json.loads(run.stdout)

    def classify(self, *args):
        return self.bench('--images', f'{self.dir}/pictures', '--admin-token-file', f'{self.dir}/store/admin.token', *args)


def engine(o):
    """Images a second of the engine alone."""
    ask = f'infer {o.arch} {o.px} {o.batch} {o.threads} fp32 {o.seconds}\n'
    run = subprocess.run([f'{o.bin}/engine_bench'], input=ask, stdout=subprocess.PIPE, text=True, check=True)
    words = run.stdout.split()
    if words[:1] != ['ok']:
        sys.exit(f'serving.sh: engine_bench: {run.stdout.strip()}')
    return o.batch * 1000 / float(words[1])


def one_round(o, server):
    one, many = f'{server.dir}/token', f'{server.dir}/tokens'
    in_flight = ['--concurrency', str(o.concurrency)]
    r = {'engine': engine(o)}
    r['one'] = server.classify('--token-file', one, *in_flight)
    r['many'] = server.classify('--tokens', many, *in_flight)
    rate = max(1.0, 3 * r['many']['images_per_s'])
    r['overload'] = server.classify('--tokens', many, '--rate', f'{rate:.3f}', '--deadline-ms', str(o.deadline_ms))
    r['status'] = server.bench('--call', 'status', '--token-file', f'{server.dir}/store/admin.token', *in_flight)
    r['health'] = server.bench('--call', 'health', *in_flight)
    return r


def median(values):
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def ratio(a, b):
    return a / b if b else None


class Table:
    def __init__(self):
        self.rows = []

    def add(self, name, value, text, target=None, met=None):
        """A line; `value` None: nothing was measured."""
        verdict = '' if target is None else '-' if met is None else 'met' if met else 'MISSED'
        self.rows.append((name, '-' if value is None else text.format(value), target or '', verdict))

    def ratio(self, name, values, of, least):
        value = median(values)
        self.add(name, value, '{:.3f} of ' + of, f'>= {least:.2f}', None if value is None else value >= least)

    def print(self):
        heading = ('MEASURE', 'MEDIAN', 'TARGET', '')
        widths = [max(len(row[i]) for row in [heading, *self.rows]) for i in range(4)]
        for row in [heading, *self.rows]:
            print('  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def show(o, rounds):
    table = Table()

    def of(get):
        return [get(r) for r in rounds]

    def latency(kind, end, q):
        return median(of(lambda r: r[kind]['latency_ms'][end][q]))

    plural = f'{o.tenants} tenants'
    table.add(f'engine alone, {o.threads} thread{"s" if o.threads > 1 else ""}', median(of(lambda r: r['engine'])),
              '{:.1f} images/s')
    for kind, name in (('one', '1 tenant'), ('many', plural)):
        table.add(name, median(of(lambda r: r[kind]['images_per_s'])), '{:.1f} images/s')
        if kind == 'one':
            table.ratio('', of(lambda r: ratio(r['one']['images_per_s'], r['engine'])), 'the engine', 0.9)
        else:
            table.ratio('', of(lambda r: ratio(r['many']['images_per_s'], r['one']['images_per_s'])), '1 tenant', 0.95)
        table.add('  images a pass', median(of(lambda r: (r[kind]['server'] or {}).get('batch_images'))), '{:.1f}')
        table.add('  latency, half within', latency(kind, 'ok', 'p50'), '{:.1f} ms')
        table.add('  latency, 99 % within', latency(kind, 'ok', 'p99'), '{:.1f} ms')
    table.add(f'overload: goodput within {o.deadline_ms} ms', median(of(lambda r: r['overload']['goodput_images_per_s'])),
              '{:.1f} images/s')
    table.ratio('', of(lambda r: ratio(r['overload']['goodput_images_per_s'], r['many']['images_per_s'])), plural, 0.9)
    table.add('  offered', median(of(lambda r: r['overload']['offered_per_s'])), '{:.1f} images/s')
    table.add('  refusals, half within', latency('overload', 'refused', 'p50'), '{:.2f} ms')
    refusals = latency('overload', 'refused', 'p99')
    table.add('  refusals, 99 % within', refusals, '{:.2f} ms', '<= 10 ms', None if refusals is None else refusals <= 10)
    for code in sorted({code for r in rounds for code in r['overload']['codes']}):
        table.add(f'  {code}', median(of(lambda r: r['overload']['codes'].get(code, 0) / r['overload']['requests'])),
                  '{:.1%} of the calls')
    table.add('  the generator was late by', median(of(lambda r: (r['overload']['start_lag_ms'] or {}).get('p99'))),
              '{:.2f} ms (99 %)')
    for kind, name in (('status', 'GetStatus'), ('health', 'health checks')):
        table.add(f'calls without a model: {name}', median(of(lambda r: r[kind]['requests_per_s'])), '{:.0f} calls/s')
    table.print()


def main():
    o = options()
    print(f'{o.arch} at {o.px} px, batches of {o.batch}, {o.threads} of {len(os.sched_getaffinity(0))} cores for inference; '
          f'{o.concurrency} calls in flight; {o.rounds} round{"s" if o.rounds > 1 else ""} of {o.seconds:g} s each')
    sys.stdout.flush()
    rounds = []
    with Server(o) as server:
        for i in range(o.rounds):
            if sys.stderr.isatty():
                print(f'\rround {i + 1} of {o.rounds}', end='', file=sys.stderr, flush=True)
            rounds.append(one_round(o, server))
    if sys.stderr.isatty():
        print('\r\033[K', end='', file=sys.stderr, flush=True)
    show(o, rounds)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
