#!/usr/bin/env python3
"""trunkctl bench against a real server: does its report add up?

    trunkctl_bench.py FOLDER      # where trunkctl, trunkd and foreign_store are
"""
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import unittest

sys.dont_write_bytecode = True
from foreign import PATIENCE, Server  # noqa: E402

BIN = ''
ENDS = ['ok', 'refused', 'failed']


def put_pictures(folder):
    os.mkdir(f'{folder}/pictures')
    for name in ('picture.png', 'picture.jpg'):
        shutil.copy(f'{folder}/{name}', f'{folder}/pictures')


class Bench(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(BIN, '--access-log', 'yes', prepare=put_pictures)

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0

    def path(self, name, text=None):
        path = f'{self.server.dir}/{name}'
        if text is not None:
            with open(path, 'w') as file:
                file.write(text)
        return path

    def start(self, *args, token='alice'):
        env = {k: v for k, v in os.environ.items() if not k.startswith('TRUNKD_')}
        env.update(TRUNKD_SERVER=self.server.address, XDG_CONFIG_HOME=f'{self.server.dir}/config')
        if token:
            env['TRUNKD_TOKEN'] = self.server.facts.get(token, token)
        return subprocess.Popen([f'{BIN}/trunkctl', 'bench', *args], env=env, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)

    def bench(self, *args, code=0, token='alice'):
        """Its standard output; where it should fail and printed none, what it complained of."""
        process = self.start(*args, token=token)
        out, err = process.communicate(timeout=PATIENCE + 60)
        assert process.returncode == code, f'trunkctl bench {args} gave {process.returncode}: {err}{out}'
        return out or err

    def calls(self):
        return self.server.read('log').count(b'method=trunkd.v1.Classifier/Classify ')

    def wait_for_calls(self, more):
        """Until the server has answered some more: the load is under way."""
        want, end = self.calls() + more, time.monotonic() + PATIENCE
        while self.calls() < want:
            self.assertLess(time.monotonic(), end)
            time.sleep(0.01)

    def pictures(self):
        return '--images', f'{self.server.dir}/pictures'

    def report(self, *args, **how):
        return self.check(json.loads(self.bench(*args, '--json', **how)))

    def check(self, r):
        """What holds of any report."""
        self.assertEqual(r['requests'], sum(r[end] for end in ENDS) + r['unsent'])
        self.assertEqual(sum(r['codes'].values()), sum(r[end] for end in ENDS))
        self.assertEqual(r['codes'].get('OK', 0), r['ok'])
        self.assertLessEqual(r['good'], r['ok'])
        self.assertAlmostEqual(r['requests_per_s'], r['ok'] / r['seconds'], delta=1e-3 * r['requests_per_s'])
        for end in ENDS:
            latency = r['latency_ms'][end]
            self.assertEqual(latency['count'], r[end])
            self.assertEqual(sum(t[end] for t in r['tenants']), r[end])
            if r[end]:
                times = [latency[q] for q in ('p50', 'p90', 'p99', 'p999', 'max')]
                self.assertEqual(times, sorted(times))
                self.assertGreater(times[0], 0)
                self.assertTrue(0 < latency['mean'] <= latency['max'])
            else:
                self.assertIsNone(latency['p50'])
        if r['call'] == 'classify':
            self.assertEqual(r['images'] + r['unreadable'], r['ok'] * r['batch'])
        return r

    def test_closed_loop(self):
        admin = self.path('admin', self.server.facts['admin'] + '\n')
        r = self.report(*self.pictures(), '--concurrency', '4', '--calls', '12', '--warm-up', '0.2', '--batch', '3',
                        '--admin-token-file', admin)
        self.assertEqual((r['mode'], r['concurrency'], r['rate'], r['connections']), ('closed', 4, None, 1))
        self.assertEqual((r['requests'], r['unsent'], r['ok'], r['good'], r['unreadable']), (12, 0, 12, 12, 0))
        self.assertIsNone(r['start_lag_ms'])
        # With four in flight each call takes four times the time between answers; busy machines are uneven.
        between = 1000 / r['requests_per_s']
        self.assertTrue(between < r['latency_ms']['ok']['mean'] < 16 * between)
        self.assertEqual({'decode', 'queue', 'trunk', 'head', 'total'}, set(r['server']['stages']))
        self.assertGreaterEqual(r['server']['batch_images'], 1)

    def test_the_time_ends_it(self):
        r = self.report('--call', 'health', '--calls', '1000000000', '--seconds', '0.5', '--warm-up', '0', token=None)
        self.assertAlmostEqual(r['seconds'], 0.5, delta=0.01)

    def test_open_loop(self):
        tokens = self.path('tokens', f"# two\n{self.server.facts['alice']} 3\n\n{self.server.facts['bob']}\n")
        r = self.report(*self.pictures(), '--rate', '60', '--seconds', '2', '--warm-up', '0.2', '--tokens', tokens,
                        '--deadline-ms', '20000', token=None)
        self.assertEqual((r['mode'], r['rate'], r['concurrency'], r['deadline_ms']), ('open', 60, None, 20000))
        self.assertGreater(r['ok'], 0)
        # Poisson's 120 within six standard deviations: calls that could not be sent would be missing here.
        self.assertTrue(54 < r['requests'] < 186, r['requests'])
        self.assertEqual(r['start_lag_ms']['count'], r['requests'])
        self.assertEqual([t['weight'] for t in r['tenants']], [3, 1])
        alice, bob = (sum(t[end] for end in ENDS) for t in r['tenants'])
        self.assertGreater(alice, bob)
        self.assertIsNone(r['server'])

    def test_same_seed_same_arrivals(self):
        """A server that is slow does not change what is offered."""
        run = [*self.pictures(), '--rate', '30', '--seconds', '1', '--warm-up', '0', '--seed', '7']
        self.assertEqual(self.report(*run)['requests'], self.report(*run)['requests'])

    def test_lateness_counts_from_the_intended_time(self):
        """A stopped server: a call that was meant to go out in the pause has waited for the pause's end."""
        process = self.start(*self.pictures(), '--rate', '60', '--seconds', '3', '--warm-up', '0', '--json')
        self.wait_for_calls(5)
        self.server.process.send_signal(signal.SIGSTOP)
        time.sleep(1)
        self.server.process.send_signal(signal.SIGCONT)
        out, _ = process.communicate(timeout=PATIENCE)
        r = self.check(json.loads(out))
        self.assertGreater(r['latency_ms']['ok']['max'], 700)
        self.assertGreater(r['latency_ms']['ok']['p90'], 300)

    def test_deadlines(self):
        r = self.report(*self.pictures(), '--rate', '50', '--seconds', '1', '--warm-up', '0', '--batch', '64',
                        '--deadline-ms', '2', code=1)
        self.assertEqual((r['ok'], r['good'], r['goodput_per_s']), (0, 0, 0))
        self.assertGreater(r['codes'].get('DEADLINE_EXCEEDED', 0), 0)

    def test_calls_without_images(self):
        r = self.report('--call', 'health', '--calls', '200', '--warm-up', '0', '--concurrency', '100', token=None)
        self.assertEqual((r['connections'], r['batch'], r['images']), (2, 0, 0))
        self.assertEqual(r['ok'], 200)
        r = self.report('--call', 'status', '--calls', '20', '--warm-up', '0', token='admin')
        self.assertEqual(r['ok'], 20)

    def test_unreadable_images(self):
        broken = self.path('broken.jpg', 'no picture')
        r = self.report('--images', f'{self.server.dir}/picture.png', '--images', broken, '--batch', '2',
                        '--calls', '5', '--warm-up', '0')
        self.assertEqual((r['images'], r['unreadable']), (r['ok'], r['ok']))
        # Alone it is the request's fault, and that is found before the load begins.
        self.assertIn('INVALID_ARGUMENT', self.bench('--images', broken, code=1))

    def test_ctrl_c(self):
        process = self.start(*self.pictures(), '--seconds', '600', '--warm-up', '0', '--json')
        self.wait_for_calls(20)  # some have come back: there are 8 in flight
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, 0, err)
        r = self.check(json.loads(out))
        self.assertTrue(0 < r['seconds'] < 100)
        self.assertGreater(r['ok'], 0)

    def test_csv_and_text(self):
        path = self.path('runs.csv')
        run = [*self.pictures(), '--calls', '10', '--warm-up', '0', '--csv', path]
        text = self.bench(*run)
        self.assertIn('closed loop, 8 in flight; classify, 1 image a call; 1 tenant, 1 connection', text)
        self.assertRegex(text, r'(?m)^answered +[0-9.]+ calls/s, [0-9.]+ images/s$')
        self.assertRegex(text, r'(?m)^codes +OK [0-9]+$')
        self.assertRegex(self.bench(*run, '--quiet'), r'^[0-9.]+\n$')
        with open(path, newline='') as file:
            rows = list(csv.DictReader(file))
        self.assertEqual(len(rows), 2)
        self.assertEqual([(row['mode'], row['concurrency'], row['refused'], row['refused_p99_ms']) for row in rows],
                         [('closed', '8', '0', '')] * 2)
        self.assertTrue(all(float(row['ok_p50_ms']) <= float(row['ok_max_ms']) and None not in row for row in rows))

    def test_mistakes(self):
        def says(words, *args, code=2, **how):
            self.assertIn(words, self.bench(*args, code=code, **how))

        pictures = self.pictures()
        says('--images is missing')
        says('exclude each other', *pictures, '--rate', '5', '--concurrency', '5')
        says('--rate is -1, but must be above 0', *pictures, '--rate', '-1')
        says('--concurrency is 20001, but must be 1 to 20000', *pictures, '--concurrency', '20001')
        says('--batch is 257, but must be 1 to 256', *pictures, '--batch', '257')
        says('--seconds is 0, but must be 0.1', *pictures, '--seconds', '0')
        says('--call is "dance"', '--call', 'dance')
        says('go with --call classify', *pictures, '--call', 'health')
        says('No such file', '--images', f'{self.server.dir}/none', code=1)
        says('no image in it', '--images', f'{self.server.dir}/store', code=1)
        says('NOT_FOUND', *pictures, '--head', 'smell', code=1)
        says('UNAUTHENTICATED', *pictures, code=1, token='wrong')
        tokens = self.path('bad', f"{self.server.facts['alice']}\n{self.server.facts['bob']} -1\n")
        says(f'--tokens {tokens}:2: the weight is "-1"', *pictures, '--tokens', tokens, code=1)
        tokens = self.path('wrong', f"{self.server.facts['alice']}\nwrong\n")
        says(f'--tokens {tokens}, token 2:', *pictures, '--tokens', tokens, code=1)
        says('no token in it', *pictures, '--tokens', self.path('empty', '# none\n'), code=1)


if __name__ == '__main__':
    BIN = sys.argv.pop(1)
    unittest.main()
