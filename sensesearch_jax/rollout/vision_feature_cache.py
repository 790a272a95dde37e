"""Visual features by content hash: every image goes through the frozen tower once, whoever shows it
how often.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float

from sensesearch_jax.agent.tool_client import ToolClient, ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef
from sensesearch_jax.batching.group_batch import ImageTable
from sensesearch_jax.batching.length_bucketing import bucket
from sensesearch_jax.errors import UserError
from sensesearch_jax.model.image_processor import MAX_ASPECT_RATIO, Preprocessor
from sensesearch_jax.model.policy import Policy
from sensesearch_jax.model.vision_windows import batch_images, window_slots
from sensesearch_jax.runtime.compiling import compiler_options
from sensesearch_jax.runtime.mesh import local, mesh_of
from tools_server.failures import ToolError
from tools_server.pictures.decoder import read_gentle

Patches = tuple[Float[np.ndarray, 'i c'], tuple[int, int, int]]


def tower_program(policy: Policy) -> tuple[jax.stages.Wrapped, nnx.State, Mesh]:
    """Program of a policy's tower, (parameters, an `ImageBatch` without its counts) -> features; those
    parameters on this process's devices, and their mesh, which it is to run and lower under.
    """
    graph, parameters = nnx.split(policy.vision)
    parameters = local(parameters)
    mesh = mesh_of(parameters)
    encode = jax.jit(
        lambda p, images: nnx.merge(graph, p)(*images), compiler_options=compiler_options(mesh)
    )
    return encode, parameters, mesh


class FeatureStore:
    """Visual features of images: patches are made on tool threads (`prepare`), features are computed
    in batches on the device (`table`).

    Args:
        policy: its tower is used and must stay frozen while the store lives.
        preprocessor: of the policy's directory.
        client: fetches an image by its hash.
        capacity_bytes: features kept; the least recently wanted go first and are computed again
            when needed. Where all that a step wants fits, none of it goes before the next step.
        batch: most images in one pass through the tower.
    """

    def __init__(
        self,
        policy: Policy,
        preprocessor: Preprocessor,
        client: ToolClient,
        *,
        capacity_bytes: int,
        batch: int,
    ):
        self.sizes, self.preprocessor, self.client, self.batch = (
            policy.sizes.vision,
            preprocessor,
            client,
            batch,
        )
        encode, parameters, mesh = tower_program(policy)

        def encoded(images):
            with jax.set_mesh(mesh):  # as in Engine.set_parameters: kernels run per shard
                return encode(parameters, images)

        self._encode = encoded
        self._programs = encode._cache_size
        self._features: OrderedDict[str, tuple[np.ndarray, tuple[int, int, int]]] = OrderedDict()
        self._patches: dict[str, Patches] = {}
        self._preparing: dict[str, Future] = {}
        self._lock, self._computing = threading.Lock(), threading.Lock()
        self._bytes, self._capacity = 0, capacity_bytes
        self._seen: set[str] = set()
        self.images_encoded = 0
        self.encoded_again = (
            0  # images that went within the step that wanted them, and were encoded again in it
        )
        self._of_step: dict[
            str, int
        ] = {}  # images that the step has wanted, and the bytes of their features
        self._encoded_in_step: set[str] = set()
        self._warned = False

    @property
    def distinct_images(self) -> int:
        """Different images asked for so far; `images_encoded` / this is the vision amplification."""
        return len(self._seen)

    @property
    def step_bytes(self) -> int:
        """Features that the step has wanted so far: so much capacity keeps all of them."""
        return sum(self._of_step.values())

    def begin_step(self) -> None:
        """From here on other images may be wanted than before; the counts of the step begin anew."""
        with self._lock:
            self._of_step, self._encoded_in_step, self.encoded_again = {}, set(), 0

    @property
    def compiles(self) -> int:
        """Programs compiled for the tower so far."""
        return self._programs()

    def warm_up(self) -> None:
        """Compiles the tower for pictures of every size and form that the preprocessor gives."""
        merge, window = self.sizes.merge_size, self.sizes.window_tokens
        most = self.preprocessor.most_tokens
        # of a picture one token high, which may have more than that
        longest = math.isqrt(MAX_ASPECT_RATIO * most)
        largest = max(
            window_slots(1, longest, window),
            *(window_slots(r, most // r, window) for r in range(1, most + 1)),
        )
        smallest = np.zeros((merge**2, self.sizes.patch_width), np.float32), (1, merge, merge)
        for slots in sorted({bucket(places, window**2) for places in range(1, largest + 1)}):
            for count in {1, self.batch}:
                self._encode(batch_images([smallest], self.sizes, slots=slots, count=count)[:4])

    def unusable(self, image: ImageRef) -> str | None:
        """Reason why no policy can see a picture of this form; None if one can. Nothing is fetched."""
        try:
            self.preprocessor.grid(image.width, image.height)
        except ValueError as error:
            return f'The picture cannot be used: {error}.'
        return None

    def prepare(self, image: ImageRef) -> ToolFailure | None:
        """Fetches an image and makes its patches, unless its features are known; safe to call from
        threads.

        Those who want an image that another thread is at wait for it: questions about one picture
        come together.
        """
        with self._lock:
            if image.sha256 in self._features:
                self._features.move_to_end(image.sha256)  # it is about to be wanted
                return None
            if image.sha256 in self._patches:
                return None
            under_way = self._preparing.get(image.sha256)
            if under_way is None:
                done = self._preparing[image.sha256] = Future()
        if under_way is not None:
            return under_way.result()
        try:
            failure = self._make_patches(image)
        except BaseException as error:  # whoever waits learns of it too
            done.set_exception(error)
            raise
        else:
            done.set_result(failure)
            return failure
        finally:
            with self._lock:
                del self._preparing[image.sha256]

    def forget(self, images: Iterable[ImageRef]) -> None:
        """Frees the patches of images that are not wanted after all; they can be made again."""
        with self._lock:
            for image in images:
                self._patches.pop(image.sha256, None)

    def _make_patches(self, image: ImageRef) -> ToolFailure | None:
        data = self.client.image(image.sha256)
        if isinstance(data, ToolFailure):
            return data
        try:
            patches = self.preprocessor.patches(read_gentle(data))
        except (ToolError, ValueError) as error:  # damaged, or of a shape that no policy can see
            return ToolFailure('unavailable', f'the picture cannot be used: {error}')
        with self._lock:
            self._patches.setdefault(image.sha256, patches)
        return None

    def table(self, images: Iterable[ImageRef], ahead: Iterable[ImageRef] = ()) -> ImageTable:
        """Grids and features of the images, computing what is missing; safe to call from threads,
        one at a time.

        Args:
            images: whose features are returned.
            ahead: images that are asked for next, the soonest first: they fill the places that a
                pass through the tower has left.

        Raises:
            ValueError: an image is gone and cannot be fetched again.
        """
        refs = {image.sha256: image for image in images}
        with self._computing:
            return self._table(
                refs, {image.sha256: image for image in ahead if image.sha256 not in refs}
            )

    def _table(self, refs: dict[str, ImageRef], ahead: dict[str, ImageRef]) -> ImageTable:
        with self._lock:

            def unknown(found):
                return [image for name, image in found.items() if name not in self._features]

            missing, later = unknown(refs), unknown(ahead)
        passes = self._passes(missing, later) if missing else []
        for image in itertools.chain(*passes):
            if (failure := self.prepare(image)) and image.sha256 in refs:
                raise UserError(f'Image {image.sha256[:12]} cannot be fetched: {failure.message}')
        for images_of_pass in passes:
            self._compute(images_of_pass)
        self._seen.update(refs)
        grids, features = {}, {}
        with self._lock:
            for name in refs:
                self._features.move_to_end(name)
                features[name], grids[name] = self._features[name]
                self._of_step[name] = features[name].nbytes
            while self._bytes > self._capacity and len(self._features) > len(refs):
                _, (old, _) = self._features.popitem(last=False)
                self._bytes -= old.nbytes
        self._warn()
        return ImageTable(grids, features)

    def _warn(self) -> None:
        """Says once that the store is too small."""
        if self.encoded_again and not self._warned:
            self._warned = True

            def gib(count):
                return f'{count / (1 << 30):.3g}'

            print(
                f'sensesearch_jax: rollout.feature_cache_gib {gib(self._capacity)} is too little for the pictures of one '  # noqa: E501
                f'step, {gib(self.step_bytes)} GiB of features so far: some go through the vision tower again. Set it to '  # noqa: E501
                'more.',
                file=sys.stderr,
            )

    def clear(self) -> None:
        """Forgets all features, as after a change of the tower; they are computed when asked."""
        with self._lock:
            self._features.clear()
            self._bytes = 0
            self._of_step, self._encoded_in_step = (
                {},
                set(),
            )  # what went did not go for lack of room

    def _passes(
        self, missing: Sequence[ImageRef], later: Sequence[ImageRef]
    ) -> list[list[ImageRef]]:
        """The missing images in passes through the tower, of like size together, and later ones."""
        passes: list[list[ImageRef]] = []
        waiting: dict[int, list[ImageRef]] = {}
        for image in later:
            waiting.setdefault(self._slots(image), []).append(image)
        for slots, group in itertools.groupby(sorted(missing, key=self._slots), self._slots):
            group = list(group)
            room = -len(group) % self.batch if len(group) > 1 else 0
            group += waiting.get(slots, [])[:room]
            passes += [group[i : i + self.batch] for i in range(0, len(group), self.batch)]
        return passes

    def _slots(self, image: ImageRef) -> int:
        """The tower's places that an image is padded to: few sizes."""
        return self._padded(self.preprocessor.grid(image.width, image.height))

    def _padded(self, grid: tuple[int, int, int]) -> int:
        merge, window = self.sizes.merge_size, self.sizes.window_tokens
        return bucket(window_slots(grid[1] // merge, grid[2] // merge, window), window**2)

    def _compute(self, images: Sequence[ImageRef]) -> None:
        """Runs the tower on prepared images of like size."""
        names = [image.sha256 for image in images if image.sha256 in self._patches]
        patches = [self._patches[name] for name in names]
        # A picture that says it is turned has other sides than its reference.
        slots = max(self._padded(grid) for _, grid in patches)
        batch = batch_images(
            patches, self.sizes, slots=slots, count=1 if len(names) == 1 else self.batch
        )
        out = np.asarray(self._encode(batch[:4]))
        with self._lock:
            for name, values, count in zip(names, out, batch.counts):
                features = values[:count].copy()
                self._features[name] = features, self._patches.pop(name)[1]
                self._bytes += features.nbytes
                self.encoded_again += name in self._of_step or name in self._encoded_in_step
                self._encoded_in_step.add(name)
        self.images_encoded += len(names)
