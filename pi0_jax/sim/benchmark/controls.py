"""Makes the controls beside which a policy's success rate is read: what needs no policy reaches it.

black             the policy sees black images: what its state and prompt alone give
nearest_state     the demonstration's chunk whose state is the nearest, of the same prompt
nearest_pixels    the same, by the state and by 16x16 pixels of every camera
"""

import hashlib
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from pi0_jax.embodiments import Embodiment
from pi0_jax.errors import InputError
from pi0_jax.files import replacing
from pi0_jax.observation import RawObservation
from pi0_jax.sim.rollouts import Act

SIDE = 16  # pixels, of the images that are compared


def small_images(observation: RawObservation, cameras: Sequence[str]) -> np.ndarray:
    """Returns the images of an observation, each as 16x16 pixels: uint8[cameras, 16, 16, 3]."""
    images = (Image.fromarray(np.asarray(observation["images"][camera])) for camera in cameras)
    size, box = (SIDE, SIDE), Image.Resampling.BOX
    return np.stack([np.asarray(image.resize(size, box)) for image in images])


def black(act: Act) -> Act:
    """Returns the policy with black images in place of those that it is given."""

    def blind(observations: Sequence[RawObservation], seeds: np.ndarray) -> np.ndarray:
        unseen: list[RawObservation] = [
            {**one, "images": {name: np.zeros_like(i) for name, i in one["images"].items()}}
            for one in observations
        ]
        return act(unseen, seeds)

    return blind


class Neighbours:
    """Acts as the nearest moment of the demonstrations with the same instruction did.

    Distances are mean squares: of the state's dimensions, each by its standard deviation over the
    demonstrations, and of all pixels, by theirs. Both together weigh the same. What is constant in
    the demonstrations does not count.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        prompts: Sequence[str],
        states: np.ndarray,
        pixels: np.ndarray,
        chunks: np.ndarray,
    ) -> None:
        """Notes the moments of demonstrations.

        Args:
            cameras: names of the cameras, in the order of the pixels.
            prompts: the instruction of each of F moments.
            states: float32[F, N].
            pixels: uint8[F, cameras, 16, 16, 3].
            chunks: float32[F, H, A], what was done from then on.
        """
        self.cameras, self.prompts = tuple(cameras), np.array(prompts)
        self.states, self.pixels, self.chunks = states, pixels, chunks
        varies = np.ptp(states, axis=0) > 1e-6
        self._state_scale = varies / np.maximum(states.std(0), np.float32(1e-6))
        self._pixel_scale = 1 / float(pixels.std()) if np.ptp(pixels) else 0.0

    def act(self, *, pixels: bool) -> Act:
        """Returns the policy that compares states, and images too if `pixels`."""
        places = {prompt: np.flatnonzero(self.prompts == prompt) for prompt in set(self.prompts)}
        states = {p: self.states[rows] * self._state_scale for p, rows in places.items()}
        images = {
            p: self.pixels[rows].reshape(len(rows), -1) * np.float32(self._pixel_scale)
            for p, rows in places.items()
            if pixels
        }

        def nearest(observation: RawObservation) -> int:
            prompt = observation["prompt"]
            if prompt not in places:
                raise InputError(f"neighbours: expected demonstrations of {prompt!r}, found none")
            state = np.asarray(observation["state"]) * self._state_scale
            distance = np.square(states[prompt] - state).mean(1)
            if pixels:
                image = small_images(observation, self.cameras).reshape(-1) * self._pixel_scale
                distance = distance + np.square(images[prompt] - image.astype(np.float32)).mean(1)
            return int(places[prompt][distance.argmin()])

        return lambda observations, seeds: self.chunks[[nearest(one) for one in observations]]

    def digest(self) -> str:
        """Returns a digest of all moments."""
        found = hashlib.sha256("\n".join((*self.cameras, *self.prompts)).encode())
        for array in (self.states, self.pixels, self.chunks):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Writes the moments to a file."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file, cameras=np.array(self.cameras), prompts=self.prompts, states=self.states,
                pixels=self.pixels, chunks=self.chunks,
            )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` wrote; raises InputError if the file is missing or another one."""
        try:
            with np.load(path) as file:
                found: dict[str, Any] = {name: file[name] for name in file.files}
            return cls(**{**found, "cameras": found["cameras"].tolist()})
        except (
            *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError),
            *(zipfile.BadZipFile, zlib.error),
        ) as error:
            raise InputError(
                f"{path}: expected a file of launch.neighbours, found {error}"
            ) from error


def open_neighbours(path: str | None, record: Embodiment, prompts: Iterable[str]) -> Neighbours:
    """Reads the moments of a robot's demonstrations, which need to have all these instructions.

    Raises:
        InputError: there is no path, or the file is missing, damaged, another robot's, or lacks an
            instruction.
    """
    if not path:
        raise InputError("conditions nearest_state, nearest_pixels: expected --neighbours")
    moments = Neighbours.load(Path(path))
    expected = sorted(record.cameras.values()), len(record.state), len(record.actions)
    found = sorted(moments.cameras), moments.states.shape[-1], moments.chunks.shape[-1]
    if found != expected:
        told = f"expected cameras, state and action dimensions {expected}, found {found}"
        raise InputError(f"{path}: {told}")
    if missing := sorted(set(prompts) - set(moments.prompts.tolist())):
        raise InputError(f"{path}: expected demonstrations of {missing[0]!r}, found none")
    return moments
