"""A server against the local policy that it serves."""

from __future__ import annotations

import importlib.metadata
import json
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as open_websocket

import policysmith
from policysmith.builder import BasePolicyModel, Builder
from policysmith.builder.policy.acting.session import Session
from policysmith.builder.serving.protocol import pack, unpack
from policysmith.builder.serving.server import Limits
from policysmith.builder.serving.thinking import Remote
from policysmith.components.real_time import Continuation
from policysmith.schemas.errors import ServerError, SpecError

Serving = Callable[..., str]
CAMERA = "observation.images.corner2"
FLOW = {"type": "flow_matching", "network": {"type": "dit", "width": 16, "depth": 1, "heads": 2}, "steps": 2}


def http(address: str, path: str, token: str | None = None) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(address.replace("ws://", "http://") + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def states(seed: int, count: int = 5) -> list[torch.Tensor]:
    return list(torch.rand(count, 4, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data.observation_steps": 3},
        {"policy.execute": 1, "policy.ensemble": 0.3},
        {"data.past_actions": 1, "policy.execute": 2},
    ],
    ids=str,
)
def test_a_remote_policy_acts_like_the_local_one(
    changes: dict[str, Any], tiny: dict[str, Any], observation: dict[str, Any], serving: Serving
) -> None:
    local = Builder.from_recipe(tiny).override(changes).build().eval()
    with policysmith.connect(serving(None, local)) as remote:
        for _ in range(2):
            session = Session(local)
            for state in states(0):
                seen = {**observation, "observation.state": state}
                torch.testing.assert_close(
                    remote.select_action(seen, clamp=True), session.select_action(seen, clamp=True)
                )
            remote.reset()


def test_a_generator_decides_what_a_remote_policy_samples(
    tiny: dict[str, Any], observation: dict[str, Any], serving: Serving
) -> None:
    local = Builder.from_recipe(tiny).override({"policy.head": FLOW}).build().eval()
    with policysmith.connect(serving(None, local)) as remote:

        def act(seed: int) -> torch.Tensor:
            remote.reset()
            return remote.select_action(observation, torch.Generator().manual_seed(seed))

        assert torch.equal(act(1), act(1))
        assert not torch.equal(act(1), act(2))


def openpi_client(folder: Path) -> Path:
    """Return a folder with openpi's client, whose pin of numpy only pip minds; skip without a registry."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*command, "openpi-client==0.1.2"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"openpi-client cannot be installed: {done.stderr[-300:]}")
    return folder


def test_openpis_own_client_drives_the_policy(
    policy: BasePolicyModel, observation: dict[str, Any], serving: Serving, tmp_path: Path
) -> None:
    names = {CAMERA: "images/cam_high", "observation.state": "state"}
    address = serving(Limits(token="secret"), names=names)
    np.savez(tmp_path / "seen.npz", image=observation[CAMERA], state=observation["observation.state"])
    code = """
        import json, sys
        import numpy as np
        sys.path.insert(0, sys.argv[1])
        from openpi_client.websocket_client_policy import WebsocketClientPolicy
        host, port = sys.argv[2].removeprefix("ws://").split(":")
        policy = WebsocketClientPolicy(host, int(port), api_key="secret")
        seen = np.load(sys.argv[3])
        given = {"images": {"cam_high": seen["image"]}, "state": seen["state"], "prompt": "open the drawer"}
        answer = policy.infer(given)
        try:
            policy.infer({"state": seen["state"]})
        except RuntimeError as error:
            refused = str(error)
        again = policy.infer(given)
        print(json.dumps([answer["actions"].tolist(), sorted(answer["server_timing"]), refused,
                          sorted(policy.get_server_metadata())]))
        assert np.array_equal(answer["actions"], again["actions"])
    """
    script = tmp_path / "drive.py"
    script.write_text(textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, script, openpi_client(tmp_path / "client"), address, tmp_path / "seen.npz"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    actions, timing, refused, metadata = json.loads(done.stdout)
    windowed = {**observation, CAMERA: observation[CAMERA][None]}
    windowed["observation.state"] = observation["observation.state"][None]
    torch.testing.assert_close(torch.tensor(actions), policy.chunk(windowed))
    assert timing == ["infer_ms", "total_ms"]
    assert "lacks `images.cam_high`" in refused
    assert "`state` float32 (4,)" in refused
    assert {"observation", "horizon", "signals"} <= set(metadata)


def test_images_of_other_layouts_and_sizes_are_fitted(
    policy: BasePolicyModel, observation: dict[str, Any], serving: Serving
) -> None:
    image = observation[CAMERA].numpy()
    with policysmith.connect(serving()) as remote:

        def act(camera: Any) -> torch.Tensor:
            return remote.chunk({**observation, CAMERA: camera})

        expected = act(image)
        torch.testing.assert_close(act(np.moveaxis(image, 0, -1)), expected)
        larger = image.repeat(2, 1).repeat(2, 2)
        assert act(larger).shape == expected.shape
        assert torch.equal(act(np.moveaxis(larger, 0, -1)), act(larger))
        for bad in (image[:, :48], image[:1], image.astype(np.float32), np.zeros((3, 50, 3), np.uint8)):
            with pytest.raises(SpecError, match=CAMERA):
                act(bad)
        torch.testing.assert_close(act(image), expected)  # the connection lives on


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"observation.state": None}, r"lacks `observation\.state`.*expected: "),
        ({"observation.states": np.zeros(4)}, r"`observation\.states`.*does not know.*expected: "),
        ({"observation.state": np.zeros(5)}, "must be float32"),
        ({"observation.state": np.full(4, np.nan)}, "not finite"),
        ({"observation.state": "text"}, "not an array"),
        ({"observation.state": [1.0, [2.0]]}, "not an array"),
    ],
    ids=str,
)
def test_a_wrong_observation_is_answered_with_what_is_expected(
    change: dict[str, Any], said: str, observation: dict[str, Any], serving: Serving
) -> None:
    given = {key: value for key, value in {**observation, **change}.items() if value is not None}
    with policysmith.connect(serving()) as remote, pytest.raises(SpecError, match=said):
        remote.chunk(given)


class Recorder:
    """Remembers the sizes of batches, holds the first until all robots wait, and breaks at a state of -1."""

    def __init__(self, policy: BasePolicyModel) -> None:
        self.policy, self.sizes = policy, []
        self.begun, self.hold = threading.Event(), threading.Event()
        self.hold.set()

    def predict(self, samples: Sequence[Any], generator: Any = None) -> torch.Tensor:
        self.begun.set()
        self.hold.wait(10)
        self.sizes.append(len(samples))
        if any((sample["observation.state"] == -1.0).all() for sample in samples):
            raise ValueError("broken")
        return self.policy.predict(samples, generator)

    def continue_chunks(self, samples: Sequence[Any], running: Any, generator: Any = None) -> torch.Tensor:
        self.sizes.append(-len(samples))
        return self.policy.continue_chunks(samples, running, generator)


def together(source: Recorder, address: str, acts: Sequence[Callable[[], None]]) -> None:
    """Let the first robot ask, and all others while it is being answered."""
    source.sizes.clear()
    source.begun.clear()
    source.hold.clear()
    first, *others = (threading.Thread(target=act) for act in acts)
    first.start()
    assert source.begun.wait(10)
    for thread in others:
        thread.start()
    waiting = f"policysmith_waiting_observations {len(others)}.0"
    deadline = time.monotonic() + 10
    while waiting not in http(address, "/metrics")[1] and time.monotonic() < deadline:
        time.sleep(0.01)
    source.hold.set()
    for thread in (first, *others):
        thread.join()


def test_robots_that_ask_together_are_answered_together(
    policy: BasePolicyModel, observation: dict[str, Any], serving: Serving
) -> None:
    source = Recorder(policy)
    address = serving(Limits(batch=4, window=0.0), source=source)
    assert source.sizes == [1, 2, 4]  # warm-up
    robots = [policysmith.connect(address) for _ in range(6)]
    found: dict[int, torch.Tensor] = {}

    def act(number: int) -> None:
        seen = {**observation, "observation.state": torch.full((4,), number / 10.0)}
        found[number] = robots[number].select_action(seen)

    together(source, address, [partial(act, number) for number in range(6)])
    for robot in robots:
        robot.close()
    assert source.sizes == [1, 4, 1]
    for number, action in found.items():
        seen = {**observation, "observation.state": torch.full((4,), number / 10.0)}
        torch.testing.assert_close(action, Session(policy).select_action(seen), atol=1e-5, rtol=1e-5)
    metrics = http(address, "/metrics")[1]
    assert 'policysmith_answers_total{answer="chunk"} 6.0' in metrics
    assert "policysmith_batch_size_count 3.0" in metrics
    assert "policysmith_waiting_observations 0.0" in metrics


def test_a_failure_in_a_batch_is_that_of_one_robot(
    policy: BasePolicyModel, observation: dict[str, Any], serving: Serving
) -> None:
    source = Recorder(policy)
    address = serving(Limits(batch=4, window=0.0), source=source)
    answered: dict[int, bool] = {}

    def act(number: int) -> None:
        state = torch.full((4,), -1.0 if number == 3 else number / 10.0)
        with policysmith.connect(address) as robot:
            try:
                robot.select_action({**observation, "observation.state": state})
                answered[number] = True
            except SpecError:
                answered[number] = False

    together(source, address, [partial(act, number) for number in range(5)])
    assert source.sizes == [1, 4, 1, 1, 1, 1]
    assert answered == {number: number != 3 for number in range(5)}


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "guided"])
def test_a_server_continues_running_chunks(
    trained: bool, make_tiny: Callable[[], dict[str, Any]], observation: dict[str, Any], serving: Serving
) -> None:
    changes = {
        "policy.head": {**FLOW, "steps": 5, "delay": {"max": 3} if trained else None},
        "data.horizon": 8,
    }
    served = Builder.from_recipe(make_tiny()).override(changes).build().eval()
    source = Recorder(served)
    address = serving(Limits(batch=2), served, source=source)
    assert source.sizes == [1, -1, 2, -2]  # warm-up
    with policysmith.connect(address) as policy:
        thinker = Remote(policy, continues=True)
        assert thinker.continuation == Continuation(3 if trained else None)
        running = thinker.think(thinker.observe(observation), None, 0, False)[2:]
        chunk = thinker.think(thinker.observe(observation), running, 3, False)
        others = [policy.chunk(observation) for _ in range(3)]
        spread = torch.tensor(served.config.statistics["action"]["std"]).clamp_min(1e-6)

        def distance(chunk: torch.Tensor) -> float:
            return float(((chunk[:3] - running[:3]) / spread)[:, :3].abs().mean())

        assert distance(chunk) < (1e-4 if trained else 0.5 * min(distance(other) for other in others))
        for wrong, said in [(running[:, :2], "of 4 values"), (running * torch.nan, "not finite")]:
            with pytest.raises(SpecError, match=said):
                policy.chunk(observation, running=wrong)
        with pytest.raises(SpecError, match="cannot continue"):
            policy._ask("act", observation, {"running": running.numpy()})


def test_a_policy_that_cannot_continue_says_so(observation: dict[str, Any], serving: Serving) -> None:
    with policysmith.connect(serving()) as policy:
        with pytest.raises(SpecError, match="cannot continue a running one"):
            Remote(policy, continues=True)
        with pytest.raises(SpecError, match="cannot continue a running one"):
            policy.chunk(observation, running=torch.zeros(2, 4))


def test_a_single_robot_waits_for_nobody(observation: dict[str, Any], serving: Serving) -> None:
    with policysmith.connect(serving(Limits(window=5.0))) as remote:
        start = time.monotonic()
        remote.select_action(observation)
        assert time.monotonic() - start < 4.0


def test_a_failure_of_the_policy_is_told_and_survived(
    policy: BasePolicyModel,
    observation: dict[str, Any],
    serving: Serving,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Recorder(policy)
    address = serving(None, source=source)
    with policysmith.connect(address) as remote:
        monkeypatch.setattr(source, "predict", lambda samples, generator=None: 1 / 0)
        with pytest.raises(SpecError, match="ZeroDivisionError"):
            remote.select_action(observation)
        monkeypatch.undo()
        assert remote.select_action(observation).shape == (4,)
    assert 'answer="failed"} 1.0' in http(address, "/metrics")[1]


def test_tokens_limits_and_origins(observation: dict[str, Any], serving: Serving) -> None:
    address = serving(Limits(token="secret", clients=1, message=2**16))
    assert http(address, "/healthz") == (200, "ok\n")
    assert http(address, "/metrics")[0] == 401
    assert http(address, "/metrics", "secret")[0] == 200
    for token in (None, "wrong", "secret2"):
        with pytest.raises(ServerError, match="401"):
            policysmith.connect(address, token=token)
    page = {"origin": "http://evil.example", "additional_headers": {"Authorization": "Bearer secret"}}
    with pytest.raises(InvalidStatus, match="403"), open_websocket(address, **page):  # type: ignore[arg-type]
        pass
    with policysmith.connect(address, token="secret") as remote:
        with pytest.raises(ServerError, match="1 robots already"):
            policysmith.connect(address, token="secret")
        with pytest.raises(ServerError, match="lost"):
            remote.chunk({**observation, "more": np.zeros(2**17, np.uint8)})
    with policysmith.connect(address, token="secret") as remote:  # its place is free again
        remote.chunk(observation)


def test_a_lost_connection_is_opened_again(observation: dict[str, Any], serving: Serving) -> None:
    address = serving()
    with policysmith.connect(address, patience=5.0) as remote:
        first = remote.chunk(observation)
        remote._connection.close()
        torch.testing.assert_close(remote.chunk(observation), first)
        assert remote.reconnections == 1
    with policysmith.connect(address) as remote:
        remote._connection.close()
        with pytest.raises(ServerError, match="lost"):
            remote.chunk(observation)


def test_a_text_frame_and_other_bytes_are_refused(observation: dict[str, Any], serving: Serving) -> None:
    with open_websocket(serving(), compression=None) as connection:
        assert unpack(connection.recv(10))["policysmith"] == importlib.metadata.version("policysmith")
        for message in ("hello", b"\xc1", pack({"policysmith": {"command": "quit"}})):
            connection.send(message)
            assert isinstance(connection.recv(10), str)
        plain = {key: np.asarray(v) if not isinstance(v, str) else v for key, v in observation.items()}
        connection.send(pack(plain))
        assert unpack(connection.recv(10))["actions"].shape == (4, 4)


def test_an_address_without_a_server_is_named() -> None:
    with pytest.raises(ServerError, match="policysmith serve"):
        policysmith.connect("ws://127.0.0.1:9", timeout=2)
    with pytest.raises(ServerError, match="ws://HOST:PORT"):
        policysmith.connect("http//x")


def test_a_stopping_server_answers_what_has_arrived(
    policy: BasePolicyModel, forked: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """The command, stopped by SIGTERM while robots drive at full speed."""
    policy.save_pretrained(tmp_path / "saved")
    code = """
        import os, signal, sys, threading, time
        import numpy as np
        import policysmith
        from policysmith.schemas import console
        seen = {"observation.images.corner2": np.zeros((3, 96, 96), np.uint8), "observation.state": np.zeros(4)}
        answers = []
        def drive():
            for _ in range(1000):
                try:
                    robot = policysmith.connect("ws://127.0.0.1:" + sys.argv[2])
                    break
                except policysmith.ServerError:
                    time.sleep(0.05)
            try:
                while True:
                    answers.append(robot.chunk(seen))
                    if len(answers) == 5:
                        os.kill(os.getpid(), signal.SIGTERM)
            except policysmith.ServerError:
                pass
        threads = [threading.Thread(target=drive) for _ in range(2)]
        for thread in threads:
            thread.start()
        code = console.policysmith(["serve", sys.argv[1], "--port", sys.argv[2], "--device", "cpu"])
        for thread in threads:
            thread.join()
        print(len(answers))
        sys.exit(code)
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = forked(code, tmp_path / "saved", port)
    assert done.returncode == 143, done.stderr
    *said, count = done.stdout.splitlines()
    assert f"ready   ws://127.0.0.1:{port}" in said
    assert int(count) >= 5
    assert f"stopped by SIGTERM after {count} answers" in done.stderr
