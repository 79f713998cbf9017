"""`SSHCluster`, with a real SSH server."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sshd import make_key, needs_sshd, ssh_server
from waiting import on_a_loop, wait_for_file, wait_until

import hpcdask
from hpcdask import Client, SSHCluster
from hpcdask.client.loop import run_sync, shared_loop
from hpcdask.errors import ConfigError, LaunchError, RendezvousError

pytestmark = needs_sshd
HOST = "127.0.0.1"
ONE_THREAD = {"nthreads": 1, "memory_limit": 0}


@pytest.fixture
def ssh_log(caplog):
    """What we log of SSH: the first cluster of a process takes it from where caplog looks."""
    logger = logging.getLogger("hpcdask.ssh")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def cluster_on(sshd, *hosts, connect=(), **options):
    options.setdefault("worker_options", ONE_THREAD)
    return SSHCluster(hosts, {**sshd.connect_options, **dict(connect)}, **options)


def test_the_first_host_has_the_scheduler_and_each_other_one_a_worker(sshd, tmp_path, capfd):
    file = tmp_path / "scheduler.json"
    options = {"scheduler_file": str(file)}
    with cluster_on(sshd, HOST, HOST, HOST, **options) as cluster, Client(cluster) as client:
        assert cluster.status == "running"
        assert list(cluster.workers) == ["0", "1"]
        assert {worker.address for worker in cluster.workers.values()} == set(
            client.nthreads(timeout=5)
        )
        assert client.scheduler_address == cluster.scheduler_address
        assert repr(cluster) == (
            f"SSHCluster({cluster.name}, {cluster.scheduler_address!r}, workers=2, threads=2, "
            "running)"
        )
        assert client.submit(pow, 2, 10).result(timeout=20) == 1024
        logs = cluster.get_logs(timeout=10)
        assert logs.keys() == {"Cluster", "Scheduler", *client.nthreads(timeout=5)}
        assert "Register worker" in logs["Scheduler"]
        cluster.wait_for_workers(2, timeout=5)
        with pytest.raises(TimeoutError, match="2 of 3 workers"):
            cluster.wait_for_workers(3, timeout=0.2)
        with cluster.get_client() as another:
            assert another.submit(abs, -1).result(timeout=20) == 1
        assert file.stat().st_mode & 0o777 == 0o600
        with Client(scheduler_file=file, set_as_default=False) as another:
            assert another.submit(abs, -2).result(timeout=20) == 2
        with pytest.raises(LaunchError, match="is the file of a scheduler that runs"):
            cluster_on(sshd, HOST, **options)
    assert cluster.status == "closed"
    assert not file.exists()
    cluster.close()
    sshd.all_gone(5)
    assert capfd.readouterr().err == ""


def test_a_host_shares_its_cpus_and_memory_among_its_workers(sshd):
    cpus = len(os.sched_getaffinity(0))
    options = {"n_workers": 1, "memory_limit": "auto"}
    with cluster_on(sshd, HOST, HOST, HOST, worker_options=options) as cluster:
        assert [w.nthreads for w in cluster.workers.values()] == [max(cpus // 2, 1)] * 2
        with Client(cluster) as client:
            limits = [w["memory_limit"] for w in client.scheduler_info()["workers"].values()]
        assert sum(limits) <= hpcdask.host.memory_limit() * 1.01


def test_a_cluster_grows_and_shrinks_over_its_hosts(sshd):
    with cluster_on(sshd, HOST, HOST, HOST) as cluster, Client(cluster) as client:
        futures = client.map(pow, range(50), [2] * 50)
        cluster.scale(5, timeout=30)
        assert len(client.nthreads(timeout=5)) == len(cluster.workers) == 5
        positions = [worker.position for worker in cluster.workers.values()]
        assert sorted(positions.count(i) for i in range(2)) == [2, 3]
        assert sum(client.gather(futures, timeout=20)) == sum(n * n for n in range(50))
        cluster.scale(1, timeout=30)
        assert len(client.nthreads(timeout=5)) == len(cluster.workers) == 1
        assert client.gather(futures, timeout=20) == [n * n for n in range(50)]
        cluster.scale(0, timeout=30)
        late = client.submit(abs, -3, pure=False)
        with pytest.raises(TimeoutError):
            cluster.scale(1, timeout=0.05)
        cluster.scale(1, timeout=30)
        assert late.result(timeout=20) == 3
        assert list(client.nthreads(timeout=5)) == [w.address for w in cluster.workers.values()]


def test_a_cluster_adapts_to_its_work(sshd, tmp_path):
    options = {**ONE_THREAD, "n_workers": 0}
    with cluster_on(sshd, HOST, HOST, HOST, worker_options=options) as cluster:
        assert cluster.workers == {}
        cluster.adapt(0, 3, interval="100ms", target_duration="0.1s")
        with Client(cluster) as client:
            futures = client.map(wait_for_file, [tmp_path / "go"] * 6, range(6))
            wait_until(lambda: len(cluster.workers) == 3, 30)
            (tmp_path / "go").touch()
            assert client.gather(futures, timeout=20) == list(range(6))
            del futures
            wait_until(lambda: not cluster.workers, 30)
            assert client.submit(abs, -1).result(timeout=30) == 1


@on_a_loop
async def test_an_asynchronous_cluster_is_awaited_and_can_be_cancelled(sshd):
    async with cluster_on(sshd, HOST, HOST, asynchronous=True) as cluster:
        async with Client(cluster, asynchronous=True) as client:
            assert await client.submit(abs, -1) == 1
        await cluster.scale(2)
        assert len(cluster.workers) == 2
    assert cluster.status == "closed"
    another = cluster_on(sshd, HOST, HOST, asynchronous=True)
    starting = asyncio.ensure_future(another._started())
    while not sshd.processes():
        await asyncio.sleep(0.01)
    await another.close()
    await asyncio.wait({starting})
    assert another.status == "closed"


def test_a_client_that_shuts_the_scheduler_down_ends_the_cluster(sshd):
    with cluster_on(sshd, HOST, HOST) as cluster:
        address, token = cluster.scheduler_address, cluster.place.token
        with Client(address, token=token, set_as_default=False) as client:
            client.shutdown()
        wait_until(lambda: cluster.status == "closed")
        assert cluster.failure == ""
        sshd.all_gone(5)


def test_the_end_of_a_host_costs_time_and_no_answers(sshd, tmp_path, ssh_log):
    with cluster_on(sshd, HOST, HOST, HOST) as cluster, Client(cluster) as client:
        agents = {w.name: _parent_of(client, w.address) for w in cluster.workers.values()}
        futures = client.map(wait_for_file, [tmp_path / "go"] * 4, range(4))
        wait_until(lambda: all(client.processing(timeout=5).values()))
        [victim] = [p for p in sshd.processes() if p.pid == agents["0"]]
        victim.kill()
        lost = "lost 127.0.0.1: its process was killed by SIGKILL; its workers 0"
        wait_until(lambda: lost in ssh_log.text)
        assert list(cluster.workers) == ["1"]
        (tmp_path / "go").touch()
        assert client.gather(futures, timeout=30) == list(range(4))
        cluster.scale(2, timeout=30)  # its connection is made anew
        assert sorted(cluster.workers) == ["1", "2"]


def _parent_of(client, address):
    # The worker's parent is the process that keeps its nanny.
    [pid] = client.run(os.getppid, workers=[address], timeout=10).values()
    return pid


def test_a_worker_may_do_without_a_nanny_and_a_login_shell_may_talk(sshd):
    python = f"echo welcome; echo 'quota: 3%' >&2; {sys.executable}"
    options = {"worker_class": "Worker", "remote_python": python}
    with cluster_on(sshd, HOST, HOST, **options) as cluster, Client(cluster) as client:
        assert client.submit(abs, -1).result(timeout=20) == 1
        assert len([p for p in sshd.processes() if "python" in p.name()]) == 2


# -- Ways in --------------------------------------------------------------------------------------


def test_a_key_may_be_in_an_agent(sshd, tmp_path):
    socket = str(tmp_path / "agent")
    with subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL) as agent:
        try:
            wait_until(Path(socket).exists)
            env = {**os.environ, "SSH_AUTH_SOCK": socket}
            subprocess.run(["ssh-add", "-q", sshd.key], env=env, check=True)
            connect = {"client_keys": (), "agent_path": socket}
            with cluster_on(sshd, HOST, connect=connect) as cluster:
                assert cluster.status == "running"
        finally:
            agent.terminate()


def test_the_way_may_lead_over_another_host_as_in_the_config_of_ssh(sshd, tmp_path):
    known = tmp_path / "known_hosts"
    with ssh_server(tmp_path / "jump", key=sshd.key) as jump:
        known.write_text(sshd.known_hosts.read_text() + jump.known_hosts.read_text())
        config = tmp_path / "config"
        config.write_text(
            f"Host inner\n  HostName {HOST}\n  Port {sshd.port}\n  ProxyJump jump\n"
            f"Host jump\n  HostName {HOST}\n  Port {jump.port}\n"
            f"Host *\n  IdentityFile {sshd.key}\n  UserKnownHostsFile {known}\n"
        )
        with SSHCluster(["inner"], {"config": [str(config)]}) as cluster:
            assert cluster.status == "running"
        assert "Accepted publickey" in jump.log


# -- A password -----------------------------------------------------------------------------------


@pytest.fixture
def password_server(sshd):
    """A server that asks for a password: sshd would need an account that has one."""
    import asyncssh

    class Server(asyncssh.SSHServer):
        def password_auth_supported(self):
            return True

        def validate_password(self, username, password):
            return (username, password) == ("ann", "s3cret")

    async def pump(source, target, at_end=None):
        while data := await source.read(65536):
            target.write(data)
        if at_end is not None:
            at_end()

    async def run(process):
        environ = {**os.environ, "PYTHONPATH": str(Path(hpcdask.__file__).parents[1])}
        name, _, value = sshd.mark.partition("=")
        environ[name] = value
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_shell(
            process.command, stdin=pipe, stdout=pipe, stderr=pipe, env=environ
        )
        stdin = asyncio.ensure_future(pump(process.stdin, child.stdin, child.stdin.close))
        await asyncio.gather(pump(child.stdout, process.stdout), pump(child.stderr, process.stderr))
        process.exit(await child.wait())
        stdin.cancel()

    async def start():
        return await asyncssh.create_server(
            Server,
            HOST,
            0,
            server_host_keys=[str(sshd.folder / "host_key")],
            process_factory=run,
            encoding=None,
        )

    server = run_sync(shared_loop(), start(), 10)
    yield server.get_port()

    async def stop():
        server.close()
        await server.wait_closed()

    run_sync(shared_loop(), stop(), 10)


def test_a_password_lets_in_and_a_wrong_one_does_not(sshd, password_server):
    host_key = (sshd.folder / "host_key.pub").read_bytes()
    options = {
        "port": password_server,
        "username": "ann",
        "known_hosts": f"[{HOST}]:{password_server} ".encode() + host_key,
        "config": None,
        "client_keys": None,
    }
    one = {"worker_options": ONE_THREAD}
    with SSHCluster([HOST, HOST], {**options, "password": "s3cret"}, **one) as cluster:
        with Client(cluster) as client:
            assert client.submit(abs, -1).result(timeout=20) == 1
        assert "s3cret" not in repr(cluster.hosts)
    with pytest.raises(LaunchError, match="lets us not in as 'ann'"):
        SSHCluster([HOST, HOST], {**options, "password": "wrong"}, **one)


# -- What cannot be -------------------------------------------------------------------------------


def test_a_host_that_is_down_is_named_with_all_others(sshd):
    options = [sshd.connect_options, {**sshd.connect_options, "port": 1}, sshd.connect_options]
    with pytest.raises(LaunchError) as caught:
        SSHCluster([HOST, HOST, "nosuch.invalid"], options)
    refused, unknown = sorted(str(caught.value).splitlines())
    assert refused == (
        "cannot connect to 127.0.0.1: Connection refused. Is it up, and does an SSH server listen "
        "at port 1?"
    )
    assert unknown.startswith("there is no host nosuch.invalid: ")
    sshd.all_gone(5)


def test_a_key_that_nobody_knows_is_refused_with_what_to_do(sshd, tmp_path):
    make_key(tmp_path / "key")
    with pytest.raises(
        LaunchError, match=r"127\.0\.0\.1 lets us not in as our user: .*ssh-copy-id"
    ):
        cluster_on(sshd, HOST, HOST, connect={"client_keys": [str(tmp_path / "key")]})


def test_a_key_with_a_passphrase_is_sent_to_the_agent(sshd, tmp_path):
    key = tmp_path / "key"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "passphrase", "-f", str(key)]
    subprocess.run(command, check=True)
    with pytest.raises(LaunchError, match=r"private key for 127\.0\.0\.1 cannot be read.*ssh-add"):
        cluster_on(sshd, HOST, HOST, connect={"client_keys": [str(key)]})


def test_an_unknown_host_key_is_refused_with_what_to_do(sshd, tmp_path):
    empty = tmp_path / "known_hosts"
    empty.touch()
    with pytest.raises(LaunchError, match=r"host key of 127\.0\.0\.1 is unknown") as caught:
        cluster_on(sshd, HOST, HOST, connect={"known_hosts": str(empty)})
    assert f"'ssh-keyscan -p {sshd.port} 127.0.0.1 >> ~/.ssh/known_hosts'" in str(caught.value)
    assert f"'ssh -p {sshd.port} 127.0.0.1'" in str(caught.value)
    assert fingerprint(sshd.folder / "host_key.pub") in str(caught.value)


def fingerprint(path):
    shown = subprocess.run(["ssh-keygen", "-lf", path], capture_output=True, text=True, check=True)
    return shown.stdout.split()[1]


def test_another_host_key_than_the_known_one_is_an_alarm(sshd, tmp_path):
    make_key(tmp_path / "other")
    known = tmp_path / "known_hosts"
    known.write_text(f"[{HOST}]:{sshd.port} {(tmp_path / 'other.pub').read_text()}")
    with pytest.raises(LaunchError, match=r"another host key \(SHA256:.*\) than known_hosts says"):
        cluster_on(sshd, HOST, HOST, connect={"known_hosts": str(known)})


def test_host_keys_that_are_not_checked_are_warned_of(sshd, ssh_log):
    with cluster_on(sshd, HOST, connect={"known_hosts": None}):
        assert "host keys are not checked (known_hosts=None)" in ssh_log.text
        assert "has no host for workers; name 127.0.0.1 twice" in ssh_log.text


@pytest.mark.parametrize(
    ("python", "why"),
    [
        ("/no/such/python", r"no Python '/no/such/python' on 127\.0\.0\.1: .*--remote-python"),
        ("/etc/passwd", r"'/etc/passwd' on 127\.0\.0\.1 cannot be run"),
        (f"{sys.executable} -I -S", r"on 127\.0\.0\.1 has no hpcdask: pip install hpcdask=="),
        ("exit 3 #", r"exited with code 3 before hpcdask had started: it printed nothing"),
        ("echo no logins today; false", r"exited with code 1 .*no logins today"),
    ],
)
def test_a_python_that_is_of_no_use_is_named(sshd, python, why):
    with pytest.raises(LaunchError, match=why) as caught:
        cluster_on(sshd, HOST, HOST, remote_python=python)
    assert len(str(caught.value).splitlines()) == 1


def test_a_python_that_is_not_heard_is_named_with_what_may_keep_it(sshd, monkeypatch):
    monkeypatch.setattr("hpcdask.launchers.ssh._SLACK", 0.2)
    options = {"remote_python": "cat >/dev/null #", "worker_options": {"death_timeout": "0.8s"}}
    with pytest.raises(LaunchError, match=r"'cat >/dev/null #' does .*--no-capture-output"):
        cluster_on(sshd, HOST, HOST, **options)
    sshd.all_gone(8)


@pytest.mark.parametrize("version", ["0.0.1", None])
def test_another_version_of_hpcdask_is_named(sshd, tmp_path, version):
    package = tmp_path / "hpcdask"
    package.mkdir()
    source = Path(hpcdask.__file__).parent
    shutil.copy(source / "__init__.py", package)
    (package / "_version.py").write_text(f"__version__ = {version!r}\n")
    if version is not None:
        shutil.copytree(source / "launchers", package / "launchers")
    python = f"env PYTHONPATH={tmp_path} {sys.executable}"
    what = "has hpcdask 0.0.1, and we have" if version else "hpcdask on 127.0.0.1 is too old"
    with pytest.raises(LaunchError, match=what):
        cluster_on(sshd, HOST, HOST, remote_python=python)


@pytest.mark.parametrize(
    ("options", "kind", "why"),
    [
        ({"worker_options": {"port": "9000:9001", "n_workers": 3}}, ConfigError, "need 3 ports;"),
        ({"worker_class": "nosuch.Nanny"}, ConfigError, "no worker class 'nosuch.Nanny'"),
        ({"log_directory": "/dev/null/x"}, LaunchError, "cannot write to its --log-directory"),
        ({"scheduler_file": "missing/s.json"}, LaunchError, "the folder missing does not exist"),
        ({"scheduler_options": {"interface": "nope0"}}, LaunchError, "no network interface"),
    ],
)
def test_what_a_host_cannot_do_is_said_and_nothing_stays(sshd, options, kind, why):
    with pytest.raises((kind, RendezvousError), match=why):
        cluster_on(sshd, HOST, HOST, **options)
    sshd.all_gone(8)


def test_options_that_cannot_be_are_refused_before_anybody_is_asked():
    one = ["nosuch.invalid"]
    for options, kind, why in [
        ({"hosts": []}, ConfigError, "at least one host"),
        ({"hosts": one, "worker_options": {"nthread": 2}}, TypeError, "have an option nthread"),
        ({"hosts": one, "scheduler_options": {"ports": 2}}, TypeError, "ports"),
        (
            {"hosts": one, "scheduler_options": {"dashboard_address": ":1"}},
            ConfigError,
            "dashboard",
        ),
        ({"hosts": one, "worker_options": {"token": b""}}, ConfigError, "token cannot be among"),
        ({"hosts": one, "silence_timeout": "soon"}, ConfigError, "'soon' is not a duration"),
        ({"hosts": one, "silence_timeout": 0}, ConfigError, "would end every host at once"),
        ({"hosts": ["a b"]}, ConfigError, "'a b' is no host"),
        ({"hosts": one, "worker_options": {"n_workers": "x"}}, ConfigError, "'x' is neither"),
        ({"hosts": one, "worker_options": {"port": "x"}}, ConfigError, "'x' is no port"),
        ({"hosts": one, "worker_options": {"resources": "GPU"}}, ConfigError, "is no resource"),
        ({"hosts": one, "worker_options": {"memory_limit": "x"}}, ConfigError, "'x' is not a size"),
        (
            {"hosts": one, "worker_options": {"death_timeout": "x"}},
            ConfigError,
            "is not a duration",
        ),
        ({"hosts": one, "connect_options": {"passwort": 1}}, ConfigError, "passwort"),
    ]:
        with pytest.raises(kind, match=why):
            SSHCluster(**options)


def test_without_asyncssh_it_is_said_what_to_install():
    code = (
        "import sys; sys.modules['asyncssh'] = None\n"
        "from hpcdask import SSHCluster\n"
        "try: SSHCluster(['localhost'])\n"
        "except Exception as exc: print(type(exc).__name__, exc)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.startswith("LaunchError hosts are reached with asyncssh, which cannot be")
    assert "pip install 'hpcdask[ssh]'" in run.stdout
    assert run.stderr == ""
