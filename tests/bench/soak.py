#!/usr/bin/python3
"""Everything at once against one trunkd (ResNet-20 at 32 px), for tests/bench/soak.sh; ends with a table, and with exit
status 1 when anything in it is wrong.

soak   Alice's calls, streams and connections, of which none may fail. Bob's bad images, cancelled and late calls, slow
       readers, slow and vanishing uploads, which may fail only with the codes that are meant for them. Carol uploads,
       trains, asks, deletes her head and her data, again and again. An admin rolls back to versions made before.
       Every answer must have the same bits as all others of that version and picture, by whatever service and in
       whatever company; at the end each version is rolled back to and asked alone. RSS and descriptors of the server
       are read each 5 seconds: of the second half, Theil and Sen's slope (the median of the slopes between any two
       samples) must stay below the bounds; and when all clients are gone, so must their descriptors be.
swaps  Alice and Bob call while the admin rolls back again and again between three versions whose answers were recorded
       before; each new version is asked several times before the next. No call may fail, no answer be another
       version's.

A sanitizer's report in the server's log, or an exit status other than 0, is a failure, too. In builds with sanitizers
memory is not judged, as it is theirs.
"""
import argparse
import csv
import itertools
import json
import os
import re
import signal
import statistics
import sys
import threading
import time
import urllib.request

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, '../clients'))
import grpc  # noqa: E402

import soak_load as clients  # noqa: E402
from foreign import PATIENCE, Server, normal_trainer  # noqa: E402

REPORTS = re.compile(r'(WARNING: ThreadSanitizer|ERROR: AddressSanitizer|ERROR: LeakSanitizer|runtime error:).*')
VERIFIED = 30  # versions asked again at the end


def options():
    parser = argparse.ArgumentParser(prog='soak.sh', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('mode', nargs='?', choices=['soak', 'swaps'], default='soak')
    add('--bin', required=True, help=argparse.SUPPRESS)
    add('--sanitized', action='store_true', help=argparse.SUPPRESS)
    add('--minutes', type=float, default=10, help='of mixed load (10)')
    add('--swaps', type=int, default=200, help='(200)')
    add('--growth', type=float, default=1, help='bound of the memory\'s slope, MiB a minute (1)')
    add('--descriptors', type=float, default=1, help='bound of the descriptors\' slope, a minute (1)')
    add('--csv', metavar='FILE', help='write the samples: seconds, RSS in KiB, descriptors, threads')
    add('--json', action='store_true', help='print the table as JSON')
    add('--seed', type=int, default=1, help='of the clients\' choices (1)')
    return parser.parse_args()


# -- watching the server --

class Watch:
    """Samples of a process, each 5 seconds."""

    def __init__(self, pid):
        self.pid, self.samples = pid, []  # (seconds, KiB, descriptors, threads)
        self.began = time.monotonic()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def sample(self):
        with open(f'/proc/{self.pid}/status') as status:
            known = dict(line.split(':', 1) for line in status)
        return (time.monotonic() - self.began, int(known['VmRSS'].split()[0]), len(os.listdir(f'/proc/{self.pid}/fd')),
                int(known['Threads']))

    def run(self):
        while not self.stop.wait(5):
            try:
                self.samples.append(self.sample())
            except (FileNotFoundError, ProcessLookupError, KeyError):
                return  # the server has ended; its exit status tells

    def second_half(self, column):
        """The slope a minute; None while there are too few samples."""
        half = self.samples[len(self.samples) // 2:]
        if len(half) < 3:
            return None
        return 60 * statistics.median((b[column] - a[column]) / (b[0] - a[0]) for a, b in itertools.combinations(half, 2))


def logged(server):
    return server.read('log').decode(errors='replace')


def metric(server, name):
    [port] = re.findall(r'event="http listening".* port=(\d+)', logged(server))
    with urllib.request.urlopen(f'http://127.0.0.1:{port}/metrics', timeout=PATIENCE) as answer:
        return float(re.search(rf'^{name} (\S+)$', answer.read().decode(), re.M).group(1))


# -- the table --

class Table:
    def __init__(self):
        self.rows = []

    def add(self, name, value, limit='', fine=True):
        self.rows.append({'measure': name, 'value': value, 'limit': limit, 'fine': bool(fine)})

    def zero(self, name, found):
        self.add(name, len(found), '0', not found)
        for text in found[:5]:
            print(f'{name}: {text}', file=sys.stderr)

    def bound(self, name, value, bound, unit):
        """A slope against its bound; None: not judged."""
        self.add(name, '-' if value is None else f'{value:+.2f} {unit}', f'< {bound:g} {unit}',
                 value is None or value < bound)

    def fine(self):
        return all(row['fine'] for row in self.rows)

    def print(self, as_json):
        if as_json:
            print(json.dumps({'fine': self.fine(), 'rows': self.rows}, indent=1))
            return
        cells = [('MEASURE', 'VALUE', 'LIMIT', '')]
        cells += [(r['measure'], str(r['value']), r['limit'], '' if not r['limit'] else 'fine' if r['fine'] else 'WRONG')
                  for r in self.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(4)]
        for row in cells:
            print('  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def count_calls(table, load):
    for name in sorted({name for name, _ in load.ends}):
        ends = {end: n for (of, end), n in load.ends.items() if of == name}
        table.add(name, ', '.join(f'{n} {end}' for end, n in sorted(ends.items(), key=lambda item: -item[1])))
    table.add('answers compared', load.truth.compared, '> 0', load.truth.compared > 0)
    table.zero('wrong answers', load.truth.wrong)
    table.zero('unexpected ends', load.unexpected)


def end_server(table, server):
    """Stops it; its log is read before it is gone."""
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(10 * PATIENCE)
    table.zero('sanitizer reports', [match.group(0) for match in REPORTS.finditer(logged(server))])
    status = server.stop()
    table.add('exit status', status, '0', status == 0)


# -- modes --

def ask_alone(load, version):
    """Each picture by each tenant, one call after the other, while nobody else asks."""
    for who in ('alice', 'bob'):
        for picture in range(len(load.pictures)):
            got = load.classify(who, [picture])
            assert load.truth.origin(got) == version, f'version {got} answers, not {version}'


def record(load, versions):
    for version in versions:
        clients.rolls_back(load, version)
        ask_alone(load, version)


def swaps(o, server, table):
    load = clients.Load(server, 4 if o.sanitized else 1)
    versions = [1, 2, 3]
    record(load, versions[:-1])
    clients.rolls_back(load, 3)  # 3 itself was not the current one any more
    ask_alone(load, 3)
    before = load.truth.compared
    clients.start_good(load)
    began = time.monotonic()
    made, current = [], 3
    for i in range(o.swaps):
        seen = load.truth.compared
        while load.truth.compared < seen + 20 and not load.unexpected:
            time.sleep(0.002)
        current = [v for v in versions if v != current][i * 7 % 2]
        made.append(clients.rolls_back(load, current))
    seconds = time.monotonic() - began
    load.finish()
    asked = len(load.truth.seen & set(made))
    table.add('swaps', f'{len(made)} in {seconds:.1f} s')
    table.add('of them versions that answered', asked, f'>= {len(made) - 1}', asked >= len(made) - 1)
    table.add('answers under load', load.truth.compared - before)
    count_calls(table, load)
    load.close()


def wait_for_quiet(server, base):
    """Descriptors above what there were before the load, once it has gone."""
    end = time.monotonic() + PATIENCE
    while (over := len(os.listdir(f'/proc/{server.process.pid}/fd')) - base) > 2 and time.monotonic() < end:
        time.sleep(0.2)
    return over


def verify(load):
    """The last versions again, alone: they must say what they said in the crowd."""
    for version in load.truth.origins()[-VERIFIED:]:
        clients.rolls_back(load, version)
        ask_alone(load, version)


def create_carol(load):
    load.tokens['carol'] = load.call('admin', clients.ADMIN, 'CreateTenant', name='carol').token


def show_progress(o, load, watch):
    end = time.monotonic() + 60 * o.minutes
    while (left := end - time.monotonic()) > 0:
        load.stop.wait(min(left, 10))
        if sys.stderr.isatty() and watch.samples:
            _, rss, files, _ = watch.samples[-1]
            print(f'\r{left / 60:4.1f} minutes left, {load.truth.compared} answers, {len(load.truth.wrong)} wrong, '
                  f'{len(load.unexpected)} unexpected, {rss >> 10} MiB, {files} descriptors ', end='', file=sys.stderr)
        if load.server.process.poll() is not None:
            load.fail('trunkd', 'has ended')
            return


def soak(o, server, table):
    base = len(os.listdir(f'/proc/{server.process.pid}/fd'))
    load = clients.Load(server, 6 if o.sanitized else 1)
    create_carol(load)
    record(load, [1, 2])
    watch = Watch(server.process.pid)
    watch.thread.start()
    clients.start_all(load)
    show_progress(o, load, watch)
    watch.stop.set()
    load.finish()
    if server.process.poll() is None:
        table.add('versions made', made := int(metric(server, 'trunkd_versions_committed_total')), '> 0', made > 0)
        verify(load)
        left = [f'data set {s.id}' for who in ('alice', 'bob', 'carol')
                for s in load.call(who, clients.DATA_SETS, 'List').data_sets]
        busy = metric(server, 'trunkd_queue_images'), metric(server, 'trunkd_rpc_in_flight')
    load.close()
    count_calls(table, load)
    if server.process.poll() is None:
        judge(o, table, server, watch, base, left, busy)
    if o.csv:
        with open(o.csv, 'w', newline='') as file:
            csv.writer(file).writerows([('seconds', 'rss_kib', 'descriptors', 'threads'), *watch.samples])


def judge(o, table, server, watch, base, left, busy):
    """Memory, descriptors, and what may not be left behind."""
    table.zero('data sets left behind', left)
    table.add('images that wait, calls alive, at the end', f'{busy[0]:.0f}, {busy[1]:.0f}', '0, 0', busy == (0, 0))
    rss, files = [s[1] / 1024 for s in watch.samples], [s[2] for s in watch.samples]
    table.add('memory (RSS): first, most, last', '-' if not rss else f'{rss[0]:.1f}, {max(rss):.1f}, {rss[-1]:.1f} MiB')
    slope = watch.second_half(1)
    if o.sanitized:
        table.add('  slope of the second half', '-' if slope is None else f'{slope / 1024:+.2f} MiB/min, not judged')
    else:
        table.bound('  slope of the second half', None if slope is None else slope / 1024, o.growth, 'MiB/min')
    table.add('descriptors: first, most, last', '-' if not files else f'{files[0]}, {max(files)}, {files[-1]}')
    table.bound('  slope of the second half', watch.second_half(2), o.descriptors, '/min')
    over = wait_for_quiet(server, base)
    table.add('  more than before the load, after it', over, '<= 2', over <= 2)
    time.sleep(8)  # the server gives memory back when nothing has happened for 5 seconds
    table.add('memory, the load gone', f'{watch.sample()[1] / 1024:.1f} MiB')


def main():
    o = options()
    table = Table()
    flags = ['--http', '127.0.0.1:0', '--batch', '8', '--delay-ms', '1']
    server = Server(o.bin, *flags, *(['--trainer', '{dir}/trainer'] if o.mode == 'soak' else []), versions=3,
                    prepare=lambda folder: normal_trainer(o.bin, folder))
    try:
        (swaps if o.mode == 'swaps' else soak)(o, server, table)
    except BaseException:
        sys.stderr.write(logged(server)[-4000:])
        raise
    finally:
        if sys.stderr.isatty():
            print('\r\033[K', end='', file=sys.stderr)
        end_server(table, server)
    table.print(o.json)
    return 0 if table.fine() else 1


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that no server is left
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
