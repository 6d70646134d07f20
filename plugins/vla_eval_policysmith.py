"""A model server of vla-eval 0.8 in front of `policysmith serve`.

    policysmith serve runs/pi0 --port 8000
    python vla_eval_policysmith.py --port 8001 --args.server ws://127.0.0.1:8000 --args.images '{"agentview": "..."}'

vla-eval has a protocol of its own, so this script translates: each session of the harness is one connection to the
policy's server, with its own history and chunk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from vla_eval.model_servers.base import SessionContext
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.model_servers.serve import run_server
from vla_eval.specs import IMAGE_RGB, LANGUAGE, RAW, DimSpec
from vla_eval.types import Action, Observation

import policysmith


class PolicysmithModelServer(PredictModelServer):
    """Actions of a policy that `policysmith serve` runs.

    Args:
        server: Address of the policy's server.
        images: Key of the policy by name of the benchmark's camera; by default in their order, if there are as many.
        state: Key of the policy for the benchmark's state; None for policies that read none.
        token: Token of the policy's server.
    """

    def __init__(
        self,
        server: str = "ws://127.0.0.1:8000",
        images: dict[str, str] | None = None,
        state: str | None = "observation.state",
        token: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(chunk_size=None, **kwargs)  # chunks are run by the connection
        self._server, self._token, self._state = server, token, state
        self._robots: dict[str, policysmith.RemotePolicy] = {}
        with policysmith.connect(server, token=token, patience=30.0) as policy:
            expected = policy.metadata["observation"]
        self._reads = {entry["key"]: entry["kind"] for entry in expected.values()}
        self._cameras = [key for key, kind in self._reads.items() if kind == "image"]
        self._images = images

    def get_observation_params(self) -> dict[str, Any]:
        """Return what the benchmark must send: the state and a second camera, if the policy reads them."""
        wanted = {"send_state": self._state in self._reads, "send_wrist_image": len(self._cameras) > 1}
        return {name: True for name, needed in wanted.items() if needed}

    def get_action_spec(self) -> dict[str, DimSpec]:
        """Return the spec of actions, which have the units of the training data."""
        return {"actions": RAW}

    def get_observation_spec(self) -> dict[str, DimSpec]:
        """Return the kinds of inputs."""
        spec: dict[str, DimSpec] = {"image": IMAGE_RGB, "language": LANGUAGE}
        return spec | ({"state": RAW} if self._state in self._reads else {})

    def predict(self, obs: Observation, ctx: SessionContext) -> Action:
        """Return the next action (A,) of a session."""
        robot = self._robots.get(ctx.session_id)
        if robot is None:
            robot = self._robots[ctx.session_id] = policysmith.connect(
                self._server, token=self._token, patience=30.0
            )
        if ctx.is_first:
            robot.reset()
        return {"actions": np.asarray(robot.select_action(self._translated(obs)))}

    async def on_episode_end(self, result: dict[str, Any], ctx: SessionContext) -> None:
        """Close the connection of a session."""
        await super().on_episode_end(result, ctx)
        if (robot := self._robots.pop(ctx.session_id, None)) is not None:
            robot.close()

    def _translated(self, obs: Observation) -> dict[str, Any]:
        """Return an observation under the policy's keys. Raise ValueError if one of its inputs is missing."""
        cameras = dict(obs.get("images", {}))
        if self._images is None and len(cameras) != len(self._cameras):
            raise ValueError(
                f"the benchmark has the cameras {', '.join(cameras) or 'none'}, and the policy reads "
                f"{', '.join(self._cameras) or 'none'}; name those to use with `--args.images`"
            )
        names = self._images or dict(zip(cameras, self._cameras, strict=True))
        if absent := [name for name in names if name not in cameras]:
            raise ValueError(
                f"the benchmark has no camera {', '.join(absent)}; it has {', '.join(cameras) or 'none'}"
            )
        found: dict[str, Any] = {key: np.asarray(cameras[name], np.uint8) for name, key in names.items()}
        if self._state in self._reads:
            state = obs.get("states", obs.get("state"))
            if state is None:
                raise ValueError(f"the benchmark sends no state, and the policy reads `{self._state}`")
            found[self._state] = np.asarray(state, np.float32)
        return found | {"task": str(obs.get("task_description", ""))}


if __name__ == "__main__":
    run_server(PolicysmithModelServer)
