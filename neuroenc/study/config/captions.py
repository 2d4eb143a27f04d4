"""Settings of voxel captions, ``[captions.*]``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.study.config.table import MOST, Count, CountOrZero, Device, File, FolderOrName, PathMark, Share, Table


class SpaceConfig(Table):
    """The embedding space in which voxels' weights are decoded.

    Attributes
    ----------
    model
        A joint image-text space ("world", "conse", or a CLIP of open_clip), or a text space ("minilm").
    pretrained
        Weights of an open_clip model, such as "openai", or their file.
    stimuli
        What of each stimulus is embedded; "captions" for a text space.
    """

    model: str
    pretrained: FolderOrName = ""
    stimuli: Literal["image", "captions"] = "image"


class CaptionEncoderConfig(Table):
    """Linear encoder whose weights are captioned.

    Attributes
    ----------
    kind
        "ridge": closed form, as ``[encoder]`` says. "adamw": gradient descent as published, for comparison.
    augment
        Of "adamw": augmented copies of each training picture, of which an epoch takes one; 0 takes the picture itself.
    epochs
        Of "adamw"; its defaults are the published settings.
    batch_size
        Pictures of a step.
    lr
        Learning rate of the first epoch.
    final_lr
        The rate that it falls to exponentially.
    weight_decay
        Decoupled from the loss, of weights and intercepts.
    device
        Of "adamw": "cpu", "auto", "cuda", "mps" or another torch device.
    """

    kind: Literal["ridge", "adamw"] = "ridge"
    augment: CountOrZero = 8
    epochs: Count = 100
    batch_size: Count = 32
    lr: Annotated[float, Field(gt=0)] = 3e-4
    final_lr: Annotated[float, Field(gt=0)] = 1.5e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1.5e-2
    device: Device = "cpu"


class GateConfig(Table):
    """Which voxels are captioned.

    Attributes
    ----------
    kind
        "q": those predicted above chance. "roi": all voxels of ``rois``. "none": every voxel.
    q
        False discovery rate of "q".
    rois
        Regions of "roi".
    min_ceiling_r
        Noise ceiling (correlation) below which no voxel is captioned, where ceilings are known.
    """

    kind: Literal["q", "roi", "none"] = "q"
    q: Share = 0.05
    rois: list[str] = []
    min_ceiling_r: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _regions_of_roi(self) -> Self:
        if self.kind == "roi" and not self.rois:
            raise ConfigError('kind = "roi" needs rois = ["..."].')
        return self


class BankConfig(Table):
    """Natural images whose embeddings the weights are projected onto.

    Attributes
    ----------
    source
        "stimuli" (those of the training rows), "unseen" (scenes of the simulated world that nobody saw), "captions"
        (texts, for a text space), a data set with images, or the folder that ``neuroenc bank build`` wrote.
    """

    source: Annotated[str, PathMark(named=True, names=("stimuli", "unseen", "captions"))] = "stimuli"


class ProjectionConfig(Table):
    """Projection of weights onto the bank, which closes the gap between weights and embeddings of natural images.

    Attributes
    ----------
    method
        "softmax": mean of the bank's embeddings, weighted by softmax of their cosine to the weights. "nearest": the
        single nearest embedding. "none": no projection, a control.
    temperature
        Of the softmax.
    renormalise
        Scale the projection to unit length.
    decouple
        Average directions and norms of the bank's embeddings separately.
    """

    method: Literal["softmax", "nearest", "none"] = "softmax"
    temperature: Annotated[float, Field(gt=0)] = 1 / 150
    renormalise: bool = True
    decouple: bool = True


class DecoderConfig(Table):
    """From a projected weight vector to captions.

    Attributes
    ----------
    kind
        "prefix": a language model conditioned on the embedding. "corpus": the same, restricted to word sequences of the
        caption bank. "retrieval": the nearest captions of the caption bank. "keywords": phrases of the caption bank
        that are informative for the voxel.
    captioner
        Of "prefix" and "corpus": "world", "photo", a folder that `neuroenc.captions.PrefixDecoder.save` wrote, or a
        file in ClipCap's layout, such as the published ``coco_weights.pt``.
    tokenizer
        Of a file in ClipCap's layout: the folder of its tokenizer; GPT-2's, from the local cache or the hub, where left
        out.
    caption_bank
        Texts of all kinds but "prefix": "bank" (captions of the bank's images), "stimuli" (those of the training
        rows), or a data set with captions.
    captions_per_stimulus
        Captions taken of each stimulus of the caption bank.
    top
        Captions of each voxel.
    beams
        Beams of the search.
    groups
        Groups of diverse beam search; a divisor of ``beams``.
    diversity
        What groups are kept from repeating: tokens at the same position, or words.
    diversity_penalty
        Penalty of each repetition, subtracted from the log probability.
    method
        Beam search or nucleus sampling.
    temperature
        Of the language model's distribution.
    top_p
        Of nucleus sampling.
    max_length
        Tokens of a caption.
    n
        Of "corpus": every ``n`` tokens in a row occur in the caption bank; 0: every caption occurs in it.
    keywords
        Of "keywords": phrases of a caption, at most.
    centre
        Subtract the mean text embedding before texts and images are compared.
    rerank
        Weight of a caption's similarity to its embedding when beams are ranked; the captioner's own where left out.
    without
        Concepts of the lexicon that no caption may name, such as "person" where the embeddings cannot show people.
    per_fold
        Also a caption of every captioned voxel from each of the ``stability.folds`` disjoint parts of the bank, as
        published; words of regions are then counted over these.
    """

    kind: Literal["prefix", "corpus", "retrieval", "keywords"] = "prefix"
    captioner: FolderOrName = ""
    tokenizer: File = ""
    caption_bank: str = "bank"
    captions_per_stimulus: Count = 2
    top: Count = 3
    beams: Count = 6
    groups: Count = 3
    diversity: Literal["hamming", "words"] = "words"
    diversity_penalty: Annotated[float, Field(ge=0)] = 1.0
    method: Literal["beam", "sample"] = "beam"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.8
    max_length: Annotated[int, Field(ge=2, le=MOST)] = 40
    n: CountOrZero = 0
    keywords: Count = 5
    centre: bool = True
    rerank: Annotated[float, Field(ge=0)] | None = None
    without: list[str] = []
    per_fold: bool = False

    @property
    def writes(self) -> bool:
        """Whether a language model writes the captions."""
        return self.kind in ("prefix", "corpus")

    @field_validator("without")
    @classmethod
    def _known_concepts(cls, without: list[str]) -> list[str]:
        if without:
            from neuroenc.captions import load_lexicon

            concepts = [name for name in load_lexicon() if name != "ignore"]
            for concept in without:
                if concept not in concepts:
                    raise ConfigError(unknown_name("concept", concept, concepts))
        return without

    @model_validator(mode="after")
    def _groups_of_beams(self) -> Self:
        if self.writes and self.beams % self.groups:
            raise ConfigError(f"groups = {self.groups} does not divide beams = {self.beams}; legal is a divisor.")
        return self


class GroundingConfig(Table):
    """Check of every phrase against the voxel's top images and against its weights.

    Attributes
    ----------
    enabled
        Whether phrases are checked.
    images
        Top images of each voxel: those shown, and those that phrases are checked against.
    trim
        Take phrases out of captions that make no difference to the voxel: a caption ends where the weights have nothing
        left to say.
    judge
        What a verdict rests on. "responses": whether images that show the phrase drive the voxel, by predicted
        responses to random images of the bank, more than images that do not. "crossed": whether the best images show
        it and the weights point to it.
    effect
        Least difference between the two, in standard deviations of the predicted response, of ``trim`` and of
        "responses"; 0.5 is a medium effect.
    intervene
        Check while captions are written, and drop beams with an ungrounded phrase.
    phrases
        How noun phrases are found: "spacy" or "rules" (English; "auto" takes spaCy where it is installed), or
        "syntactic", a parser trained on the captions of the images, for other languages.
    places
        Where in its best images a voxel is driven, by embeddings of windows around the cells of a grid: "show" draws it
        over the images of the report, "witness" also asks of each phrase whether it is there. ``grid`` squared windows
        of each image that is shown are embedded.
    grid
        Cells a side of ``places``.
    """

    enabled: bool = True
    images: Count = 16
    trim: bool = True
    judge: Literal["responses", "crossed"] = "responses"
    effect: Annotated[float, Field(gt=0, le=3)] = 0.5
    intervene: bool = False
    phrases: Literal["auto", "spacy", "rules", "syntactic"] = "auto"
    places: Literal["none", "show", "witness"] = "none"
    grid: Annotated[int, Field(ge=2, le=64)] = 8


class StabilityConfig(Table):
    """Captions of resampled inputs: how far a caption depends on the bank and on the trials.

    Attributes
    ----------
    folds
        Disjoint parts of the bank; 0 leaves them out.
    bootstraps
        Bootstrap samples of the training stimuli; 0 leaves them out.
    halves
        Pairs of halves of the training stimuli; 0 leaves them out.
    null_voxels
        Voxels whose weights are shuffled for the null.
    max_voxels
        Voxels whose captions are made again, a random sample stratified by subject and region; 0: all captioned voxels.
        Each variant takes as long as the captions of these voxels did.
    """

    folds: CountOrZero = 5
    bootstraps: CountOrZero = 5
    halves: CountOrZero = 1
    null_voxels: Annotated[int, Field(ge=2, le=MOST)] = 100
    max_voxels: CountOrZero = 200

    @field_validator("folds", "bootstraps", "max_voxels")
    @classmethod
    def _not_one(cls, value: int) -> int:
        if value == 1:
            raise ConfigError("1 has nothing to be compared with; it must be 0 or at least 2.")
        return value


class AnalysisConfig(Table):
    """Analyses of captions over voxels: words of regions, clusters within regions, contrasts.

    Attributes
    ----------
    words
        Parts of speech by spaCy: "auto" where it is installed, "spacy" (refused where it is not), "none".
    clusters
        Regions to be split into clusters; empty: the largest ``max_rois`` with at least ``min_voxels``.
    min_voxels
        Captioned voxels that a region needs.
    max_rois
        Regions that are split where ``clusters`` names none.
    persons
        Share of each region's voxels whose captions name a person, and what clusters of these voxels tell apart (faces,
        bodies, groups) in the largest ``max_rois`` regions with at least ``min_voxels`` of them.
    contrast
        Two regions, or two subjects, whose captions are contrasted.
    colours
        Projected weights of captioned voxels in three dimensions, as colours of the cortex and a plane of words:
        "pca" (principal components), "umap" (the extra ``umap``) or "none".
    images
        "retrieve": the ``n_images`` images of the bank nearest to each caption, classified zero-shot (five-way accuracy
        of regions, beside the voxel's best images) and compared with held-out stimuli (image-level score). The bank is
        read twice more.
    n_images
        Images of each voxel.
    preferred
        Category (face, place, body, word, food) of regions beside those whose category is known (FFA, PPA, ...).
    """

    words: Literal["auto", "spacy", "none"] = "auto"
    clusters: list[str] = []
    min_voxels: Annotated[int, Field(ge=2, le=MOST)] = 30
    max_rois: CountOrZero = 6
    persons: bool = True
    contrast: list[str] = []
    colours: Literal["pca", "umap", "none"] = "pca"
    images: Literal["none", "retrieve"] = "none"
    n_images: Count = 5
    preferred: dict[str, str] = {}

    @field_validator("contrast")
    @classmethod
    def _two(cls, contrast: list[str]) -> list[str]:
        if contrast and len(contrast) != 2:
            raise ConfigError(f"{contrast} is not legal; it must name two regions, or two subjects.")
        return contrast


class RetrievalConfig(Table):
    """Stimuli, captions and categories that carry a voxel's n-grams, each beside BM25's answer for its captions.

    The n-grams are those that the captioner writes for a voxel, of the captions of ``decoder.caption_bank``; with
    kinds of decoder that do not write, those of the voxel's captions.

    Attributes
    ----------
    enabled
        Whether they are looked up.
    retriever
        A folder that `neuroenc.captions.PrefixDecoder.save` wrote of a decoder that `train_retriever` trained; empty:
        the captioner.
    levels
        What is looked for. Categories are the concepts of the lexicon that captions of a stimulus name.
    top
        Answers of a voxel at each level.
    voxels_per_region
        Best predicted captioned voxels of each subject and region that are looked up; 0: all.
    beams
        Beams of the search for n-grams.
    """

    enabled: bool = False
    retriever: FolderOrName = ""
    levels: list[Literal["image", "caption", "phrase", "category"]] = ["image", "caption", "category"]
    top: Count = 5
    voxels_per_region: CountOrZero = 20
    beams: Count = 15

    @field_validator("levels")
    @classmethod
    def _some(cls, levels: list[str]) -> list[str]:
        if not levels or len(set(levels)) < len(levels):
            raise ConfigError(f"levels = {levels} is not legal; name each level once, at least one.")
        return levels


class PreferencesConfig(Table):
    """Preference training of the captioner before it captions (SENTINEL), on voxels that are no one's: their weights
    are the text vectors of one or two phrases of the bank's captions, and noise.

    Off by default: on simulated cortex it removes far fewer ungrounded phrases than ``grounding.intervene``.

    Attributes
    ----------
    rounds
        Rounds of sampling under grounding constraints and training; 0: the captioner stays as it is. It is left as
        after the best round, on a quarter of the voxels that is kept apart, and saved as ``OUT/captioner``.
    voxels
        Voxels to sample captions for.
    pairs
        Pairs of a grounded and an ungrounded continuation of a round, at most.
    epochs
        Of a round.
    lr
        Learning rate.
    beta
        Of the preference loss: how far the captioner may leave itself.
    replay
        Weight of the captions of the bank's images, which keep it fluent.
    """

    rounds: CountOrZero = 0
    voxels: Annotated[int, Field(ge=2, le=MOST)] = 400
    pairs: Count = 600
    epochs: Count = 5
    lr: Annotated[float, Field(gt=0)] = 1e-4
    beta: Annotated[float, Field(gt=0)] = 0.1
    replay: Annotated[float, Field(ge=0)] = 1.0


class CaptionsConfig(Table):
    """Voxel captions: an encoder's weights, projected onto natural images, decoded into language, and checked.

    Attributes
    ----------
    space
        The embedding space.
    encoder
        The encoder whose weights are captioned.
    gate
        Which voxels are captioned.
    bank
        Natural images to project onto.
    projection
        How weights are projected.
    decoder
        How captions are made.
    grounding
        Check against images and weights.
    stability
        Check against resampled inputs.
    analysis
        Analyses over voxels.
    retrieval
        Stimuli, captions and categories that carry a voxel's n-grams.
    preferences
        Preference training of the captioner.
    """

    space: SpaceConfig
    encoder: CaptionEncoderConfig = CaptionEncoderConfig()
    gate: GateConfig = GateConfig()
    bank: BankConfig = BankConfig()
    projection: ProjectionConfig = ProjectionConfig()
    decoder: DecoderConfig = DecoderConfig()
    grounding: GroundingConfig = GroundingConfig()
    stability: StabilityConfig = StabilityConfig()
    analysis: AnalysisConfig = AnalysisConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    preferences: PreferencesConfig = PreferencesConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.decoder.writes and not self.decoder.captioner:
            raise ConfigError(
                f'decoder.kind = "{self.decoder.kind}" needs decoder.captioner = "world", "photo", a folder that '
                "PrefixDecoder.save wrote, or a file in ClipCap's layout."
            )
        if self.space.stimuli == "captions" and self.bank.source == "stimuli":
            raise ConfigError('space.stimuli = "captions" needs bank.source = "captions" or a data set.')
        if self.grounding.places != "none" and self.space.stimuli == "captions":
            raise ConfigError('grounding.places needs space.stimuli = "image": windows of images are embedded.')
        if self.encoder.kind == "adamw" and self.encoder.augment and self.space.stimuli == "captions":
            raise ConfigError('encoder.augment makes copies of pictures; space.stimuli = "captions" needs augment = 0.')
        if self.analysis.images != "none" and "captions" in (self.space.stimuli, self.bank.source):
            raise ConfigError('analysis.images needs space.stimuli = "image" and a bank of images.')
        if self.decoder.per_fold and not self.stability.folds:
            raise ConfigError("decoder.per_fold = true needs stability.folds of at least 2; 5 are published.")
        writers = {
            "grounding.intervene = true": self.grounding.intervene,
            "preferences.rounds": self.preferences.rounds,
        }
        for name, wanted in writers.items():
            if wanted and not self.decoder.writes:
                raise ConfigError(f'{name} needs decoder.kind = "prefix" or "corpus".')
        if self.bank.source == "captions" and self.decoder.caption_bank == "bank":
            raise ConfigError('decoder.caption_bank = "bank" and bank.source = "captions" name each other.')
        return self
