"""A simulated world of rendered scenes and a simulated visual cortex that sees it, with the planted truth.

Examples
--------
>>> world = simulate_world(20, seed=0)
>>> subject = simulate_cortex(world, n_voxels={"V1": 8, "PPA": 8}, n_sessions=2)[0]
>>> sorted(set(subject.responses.roi.values.tolist()))
['PPA', 'V1']
"""

from __future__ import annotations

from neuroenc.data.simulate._captions import vocabulary
from neuroenc.data.simulate._cortex import simulate_cortex
from neuroenc.data.simulate._dense import describe_cells
from neuroenc.data.simulate._lexicon import FAMILIES, MEMBERS, NEUTRAL, families_in_caption, family_of_word
from neuroenc.data.simulate._lowlevel import CHANNELS, energy_maps
from neuroenc.data.simulate._nsd_tree import nsd_tree
from neuroenc.data.simulate._readout_populations import ReadoutPopulation, simulate_readout_population
from neuroenc.data.simulate._rois import ROIS
from neuroenc.data.simulate._trees import algonauts2023_tree, bold5000_tree, god_tree, things_fmri_tree
from neuroenc.data.simulate._trees_own import bids_tree, glmsingle_tree
from neuroenc.data.simulate._world import simulate_world

__all__ = [
    "CHANNELS",
    "FAMILIES",
    "MEMBERS",
    "NEUTRAL",
    "ROIS",
    "ReadoutPopulation",
    "algonauts2023_tree",
    "bids_tree",
    "bold5000_tree",
    "describe_cells",
    "energy_maps",
    "families_in_caption",
    "family_of_word",
    "glmsingle_tree",
    "god_tree",
    "nsd_tree",
    "simulate_cortex",
    "simulate_readout_population",
    "simulate_world",
    "things_fmri_tree",
    "vocabulary",
]
