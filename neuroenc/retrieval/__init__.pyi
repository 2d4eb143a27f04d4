from ._bank import Chunk as Chunk, EmbeddingBank as EmbeddingBank
from ._build import build_bank as build_bank
from ._corpus import (
    LEVELS as LEVELS,
    CaptionCorpus as CaptionCorpus,
    labelled_queries as labelled_queries,
    plain_text as plain_text,
    pseudo_queries as pseudo_queries,
)
from ._design import Design as Design
from ._distil import DistilledRanker as DistilledRanker, distill_ranker as distill_ranker
from ._lexical import LexicalIndex as LexicalIndex
from ._mine import (
    AdaptiveMargin as AdaptiveMargin,
    Galleries as Galleries,
    HardNegatives as HardNegatives,
    OwnerQuery as OwnerQuery,
    RankWindow as RankWindow,
    hard_gallery as hard_gallery,
    mine_hard_negatives as mine_hard_negatives,
)
from ._ngrams import (
    NGramIndex as NGramIndex,
    NGramScorer as NGramScorer,
    ScoredDocument as ScoredDocument,
    Successors as Successors,
)
from ._pointer import PointerSelector as PointerSelector
from ._rank import CrossRanker as CrossRanker
from ._search import (
    DenseIndex as DenseIndex,
    HybridResult as HybridResult,
    Reranked as Reranked,
    SearchIndex as SearchIndex,
    hybrid_search as hybrid_search,
    second_stage as second_stage,
    top_k as top_k,
)
from ._select import (
    CoverageSelector as CoverageSelector,
    DOptimalSelector as DOptimalSelector,
    NearestSelector as NearestSelector,
    RandomSelector as RandomSelector,
    SupportSelector as SupportSelector,
    check_target as check_target,
    choose_greedily as choose_greedily,
)
from ._shards import StoredBank as StoredBank, as_bank as as_bank, load_bank as load_bank
