#!/usr/bin/env python3
"""scripts/cluster against stand-in daemons: what it writes, refuses, ends and removes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import clean  # noqa: E402
import layout  # noqa: E402
import proc  # noqa: E402
from common import Failure, parse_size, show_size  # noqa: E402


class ClusterCase(unittest.TestCase):
    def setUp(self):
        self.temp = tempfile.mkdtemp(prefix="qtest-")
        self.dir = os.path.join(self.temp, "c")
        bin_dir = os.path.join(self.temp, "bin")
        os.mkdir(bin_dir)
        for name in ("mdm", "sds-server", "sdc-nbd"):
            os.symlink(os.path.join(HERE, "fake", "daemon"), os.path.join(bin_dir, name))
        self.env = dict(os.environ, QUARRY_BIN_DIR=bin_dir)

    def tearDown(self):
        self.cluster("down", "--dir", self.dir, "--purge")
        shutil.rmtree(self.temp, ignore_errors=True)

    def cluster(self, *args, **env):
        command = [sys.executable, os.path.join(HERE, "..", "cluster"), *args]
        return subprocess.run(command, env={**self.env, **env}, capture_output=True, text=True)

    def up(self, *args, **env):
        return self.cluster("up", "--dir", self.dir, "--device-size", "64MiB", *args, **env)

    def state(self):
        with open(os.path.join(self.dir, "cluster.json")) as f:
            return json.load(f)

    def pids(self):
        return {m["name"]: m["pid"] for m in self.state()["members"]}

    def test_up_writes_the_state_others_rely_on(self):
        r = self.up("--copies", "2")
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertEqual(r.stdout, "")
        s = self.state()
        self.assertEqual(s["version"], 1)
        self.assertEqual(s["cluster_id"], "c-1")
        self.assertEqual(s["apis"], [s["api"]])
        names = [m["name"] for m in s["members"]]
        self.assertEqual(names, ["mdm1", "sds1", "sds2", "sds3", "sdc1"])
        for m in s["members"]:
            line = proc.command_of(m["pid"])
            self.assertEqual(line[-len(m["command"]):], m["command"])
            self.assertTrue(os.path.isabs(m["command"][0]))
            for device in m["devices"]:
                self.assertEqual(os.stat(device).st_size, 64 << 20)

    def test_a_member_is_killed_started_and_stopped_by_name(self):
        self.assertEqual(self.up().returncode, 0)
        before = self.pids()
        self.assertEqual(self.cluster("kill", "sds2", "--dir", self.dir).returncode, 0)
        self.assertIsNone(proc.start_time(before["sds2"]))
        self.assertIsNone(self.pids()["sds2"])
        self.assertEqual(self.cluster("status", "--dir", self.dir).returncode, 1)
        self.assertEqual(self.cluster("start", "sds2", "--dir", self.dir).returncode, 0)
        self.assertNotEqual(self.pids()["sds2"], before["sds2"])
        self.assertEqual(self.cluster("stop", "sds2", "--dir", self.dir).returncode, 0)
        self.assertEqual(self.cluster("stop", "nobody", "--dir", self.dir).returncode, 3)

    def test_down_keeps_data_and_up_starts_the_same_cluster(self):
        self.assertEqual(self.up().returncode, 0)
        first = self.state()
        self.assertEqual(self.cluster("down", "--dir", self.dir).returncode, 0)
        self.assertTrue(all(proc.start_time(m["pid"]) is None for m in first["members"]))
        self.assertFalse(os.path.exists(first["socket_dir"]))
        r = self.up()
        self.assertEqual(r.returncode, 0, r.stderr)
        again = self.state()
        self.assertEqual(again["token"], first["token"])
        self.assertEqual([m["command"] for m in again["members"]],
                         [m["command"] for m in first["members"]])

    def test_a_port_taken_meanwhile_is_replaced(self):
        self.assertEqual(self.up().returncode, 0)
        self.assertEqual(self.cluster("down", "--dir", self.dir).returncode, 0)
        port = int(self.state()["api"].rsplit(":", 1)[1])
        with socket.create_server(("127.0.0.1", port)):
            r = self.up()
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertNotIn(f":{port}", self.state()["api"])

    def test_down_ends_a_member_that_somebody_else_restarted(self):
        self.assertEqual(self.up().returncode, 0)
        self.assertEqual(self.cluster("kill", "sds1", "--dir", self.dir).returncode, 0)
        command = next(m["command"] for m in self.state()["members"] if m["name"] == "sds1")
        child = subprocess.Popen(command, cwd="/", env={"PATH": os.environ["PATH"]})
        # A script's command line is right only after its interpreter took over.
        deadline = time.monotonic() + 10
        while child.pid not in proc.find(command) and time.monotonic() < deadline:
            time.sleep(0.01)
        self.assertEqual(self.cluster("down", "--dir", self.dir).returncode, 0)
        self.assertIsNotNone(child.wait(timeout=5))

    def test_a_failed_up_shows_the_log_and_leaves_nothing_running(self):
        r = self.up(FAKE_CRASH="sds2")
        self.assertEqual(r.returncode, 1)
        self.assertIn("sds2 ended", r.stderr)
        self.assertIn("the disk is on fire", r.stderr)
        for m in self.state()["members"]:
            self.assertEqual(proc.find(m["command"]), [])

    def test_the_pool_is_made_when_all_devices_are_open(self):
        begin = time.monotonic()
        r = self.up(FAKE_OPENING="2")
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertGreaterEqual(time.monotonic() - begin, 2)

    def test_a_failed_device_is_told_and_nobody_waits_for_health(self):
        begin = time.monotonic()
        r = self.up(FAKE_HEALTH="degraded", FAKE_DISK="no space left")
        self.assertEqual(r.returncode, 1, r.stderr)
        self.assertIn("no space left", r.stderr)
        self.assertLess(time.monotonic() - begin, 30)

    def test_an_up_that_fails_on_a_running_cluster_stops_nothing_of_it(self):
        self.assertEqual(self.up().returncode, 0)
        before = self.pids()
        self.assertEqual(self.cluster("kill", "mdm1", "--dir", self.dir).returncode, 0)
        r = self.up(FAKE_HEALTH="degraded", FAKE_DISK="no space left")
        self.assertEqual(r.returncode, 1, r.stderr)
        for name in ("sds1", "sds2", "sds3", "sdc1"):
            self.assertEqual(self.pids()[name], before[name])
            self.assertIsNotNone(proc.start_time(before[name]))

    def test_what_cannot_work_is_refused_before_anything_is_made(self):
        for args in (["--copies", "4"], ["--copies", "3", "--sds", "2"], ["--sds", "0"],
                     ["--mdm", "3"], ["--device-size", "17"], ["--device-size", "big"]):
            r = self.cluster("up", "--dir", self.dir, *args)
            self.assertEqual(r.returncode, 2, args)
            self.assertIn("hint:", r.stderr)
            self.assertFalse(os.path.exists(self.dir))

    def test_a_directory_with_other_content_is_refused(self):
        os.mkdir(self.dir)
        with open(os.path.join(self.dir, "thesis"), "w"):
            pass
        self.assertEqual(self.up().returncode, 4)
        self.assertEqual(os.listdir(self.dir), ["thesis"])

    def test_a_device_of_somebody_else_is_not_touched(self):
        backing = os.path.join(self.temp, "b")
        os.mkdir(backing)
        with open(os.path.join(backing, "sds2.img"), "w") as f:
            f.write("precious")
        r = self.up("--backing", backing)
        self.assertEqual(r.returncode, 1, r.stderr)
        self.assertEqual(os.listdir(backing), ["sds2.img"])

    def test_purge_removes_the_devices_and_keeps_what_is_not_ours(self):
        backing = os.path.join(self.temp, "b")
        os.mkdir(backing)
        with open(os.path.join(backing, "other"), "w"):
            pass
        r = self.up("--backing", backing)
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertEqual(len(os.listdir(backing)), 4)
        self.assertEqual(self.cluster("down", "--dir", self.dir, "--purge").returncode, 0)
        self.assertEqual(os.listdir(backing), ["other"])
        self.assertFalse(os.path.exists(self.dir))

    def members_file(self, what):
        path = os.path.join(self.temp, "members.json")
        with open(path, "w") as f:
            json.dump(what, f)
        return path

    def test_members_are_wrapped_placed_and_given_devices(self):
        own = os.path.join(self.temp, "own.img")
        with open(own, "wb") as f:
            f.truncate(64 << 20)
        what = {"sds2": {"address": "127.0.0.2", "port": 29999, "devices": [own], "args": ["--no-unix"],
                         "wrap": ["/usr/bin/env", "WRAPPED=yes"]}}
        r = self.up("--members", self.members_file(what))
        self.assertEqual(r.returncode, 0, r.stderr)
        m = next(m for m in self.state()["members"] if m["name"] == "sds2")
        self.assertEqual(proc.command_of(m["pid"])[-len(m["command"]):], m["command"])
        self.assertIn("127.0.0.2:29999", m["command"])
        self.assertEqual(m["command"][-1], "--no-unix")
        self.assertTrue(m["metrics"].startswith("http://127.0.0.2:"))
        with open(f"/proc/{m['pid']}/environ", "rb") as f:
            self.assertIn(b"WRAPPED=yes", f.read().split(b"\0"))
        self.assertEqual(self.cluster("down", "--dir", self.dir, "--purge").returncode, 0)
        self.assertTrue(os.path.exists(own), "a given device is not ours to remove")

    def test_a_members_file_that_is_not_understood_is_refused(self):
        for what in ({"sds9": {}}, {"sds1": {"colour": "red"}}, {"sds1": {"port": "x"}}):
            r = self.up("--members", self.members_file(what))
            self.assertEqual(r.returncode, 2, r.stderr)
            self.assertIn("hint:", r.stderr)
            self.assertFalse(os.path.exists(os.path.join(self.dir, "cluster.json")))

    def test_clean_removes_what_a_crashed_cluster_left_and_spares_a_running_one(self):
        self.assertEqual(self.up().returncode, 0)
        s = self.state()
        self.cluster("clean")
        self.assertTrue(os.path.isdir(s["socket_dir"]), "a running cluster is spared")
        for m in s["members"]:
            os.kill(m["pid"], signal.SIGKILL)
        for m in s["members"]:
            self.assertTrue(proc.wait_gone(m["pid"], m["start_time"], 5))
        r = self.cluster("clean")
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertIn(s["socket_dir"], r.stderr)
        self.assertFalse(os.path.exists(s["socket_dir"]))


class PartsCase(unittest.TestCase):
    def test_a_pid_used_again_is_not_signalled(self):
        me = os.getpid()
        self.assertFalse(proc.send(me, proc.start_time(me) - 1, signal.SIGKILL))

    def test_sizes(self):
        self.assertEqual(parse_size("4GiB"), 4 << 30)
        self.assertEqual(parse_size("512M"), 512 << 20)
        self.assertEqual(show_size(3 << 29), "1.5 GiB")
        for bad in ("", "x", "-1", "4GB2", "1.5G"):
            self.assertRaises(Failure, parse_size, bad)

    def test_the_longest_name_fits_a_socket_path(self):
        path = os.path.join(layout.socket_dir("/x" * 100), "v" * 63 + ".sock")
        self.assertLessEqual(len(path), layout.SOCKET_PATH)

    def test_what_is_not_marked_as_ours_is_no_leftover(self):
        with tempfile.TemporaryDirectory(prefix="quarry-") as d:
            self.assertIsNone(clean.leftover(d))
            clean.mark_owner(d)
            self.assertIsNone(clean.leftover(d), "its owner lives")
            with open(os.path.join(d, "owner"), "w") as f:
                f.write("1 1\n")
            self.assertIn("gone", clean.leftover(d))


if __name__ == "__main__":
    unittest.main()
