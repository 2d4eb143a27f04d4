"""Settings of a session that is planned, ``[plan]``: candidates, prior, responses so far, and what may be chosen."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import model_validator

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError
from neuroenc.study.config.table import Count, CountOrZero, File, PathMark, Table

Pool = Annotated[str, PathMark(named=True, names=("world",))]
Prior = Annotated[str, PathMark(named=True, names=("none",))]


class PlanConfig(Table):
    """Which pictures to show to a new subject, in which order.

    Attributes
    ----------
    pool
        Candidates: a file of features (.nc or .zarr) that `neuroenc.data.save` wrote, a folder of pictures, which
        ``[features]`` embeds (by default as the stimuli of the prior's model were), or "world", scenes of the
        simulated world.
    k
        Pictures to choose.
    prior
        Of other subjects' voxels, in the space of the pool: the folder of an in-context model or "world", the shipped
        one; the folder of a WeightPrior, or of another subject's encoder; "none" plans from features alone.
    select
        Selector: "random", "nearest", "coverage", "d-optimal", "v-optimal" or "prior"; by default "prior", without a
        prior "v-optimal".
    target
        Features of the pictures that are to be predicted; by default the pool's.
    seen
        Responses so far, (presentation or stimulus, voxel), to pictures of the pool: only next ones are chosen.
    zscore
        Of ``seen``: standardise each voxel within session; "auto" where that was not done before.
    rois
        Regions that the session is for: only their voxels of ``seen`` count.
    exclude
        Pictures that must not be chosen.
    exclude_file
        The same from a text file, a name a line.
    balance
        Stimulus coordinate of the features, such as "category", whose values are chosen equally often. The folders of
        pictures are its "folder".
    repeats
        Presentations of each picture.
    trials
        Presentations that the session has, for a table of how many repeats against how many pictures; 0 for none.
    pictures
        Folder with the pictures of a file of features, to look at.
    candidates
        Of "world": scenes.
    draws
        Random lists beside the chosen one.
    """

    pool: Pool
    k: Count = 50
    prior: Prior = "none"
    select: str = ""
    target: File = ""
    seen: File = ""
    zscore: Literal["auto", "none", "session"] = "auto"
    rois: list[str] = []
    exclude: list[str] = []
    exclude_file: File = ""
    balance: str = ""
    repeats: Count = 1
    trials: CountOrZero = 0
    pictures: File = ""
    candidates: Count = 600
    draws: Count = 10

    @property
    def selector(self) -> str:
        """Name of the selector."""
        return self.select or ("v-optimal" if self.prior == "none" else "prior")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.select:
            from neuroenc.encoders.incontext import SELECTORS

            one_of("select", self.select, SELECTORS)
        if self.select == "prior" and self.prior == "none":
            raise ConfigError("select = 'prior' needs a prior. Next step: prior = \"world\", or another selector.")
        if self.rois and not self.seen:
            raise ConfigError(
                f"rois = {self.rois} weigh the voxels of responses so far, and there are none. Next step: seen, or "
                "the prior of an encoder that was fitted to these regions."
            )
        if self.trials == 1:
            raise ConfigError("trials = 1 leaves nothing to share out; at least 2.")
        return self
