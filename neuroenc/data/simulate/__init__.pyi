from ._cortex import simulate_cortex as simulate_cortex
from ._lexicon import (
    FAMILIES as FAMILIES,
    MEMBERS as MEMBERS,
    families_in_caption as families_in_caption,
    family_of_word as family_of_word,
    names_member as names_member,
    scenes_showing as scenes_showing,
)
from ._movie import simulate_movie as simulate_movie
from ._nsd_tree import nsd_tree as nsd_tree
from ._nuisances import Nuisances as Nuisances
from ._readout_populations import (
    ReadoutPopulation as ReadoutPopulation,
    simulate_readout_population as simulate_readout_population,
)
from ._rois import ROIS as ROIS, fsaverage5 as fsaverage5
from ._task_populations import simulate_task_population as simulate_task_population
from ._trees import algonauts2023_tree as algonauts2023_tree, god_tree as god_tree
from ._world import describe_cells as describe_cells, simulate_world as simulate_world, vocabulary as vocabulary
