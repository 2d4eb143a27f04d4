from ._bank import Chunk as Chunk, EmbeddingBank as EmbeddingBank, as_bank as as_bank
from ._caption_corpus import CaptionCorpus as CaptionCorpus
from ._dense import DenseIndex as DenseIndex
from ._hybrid import HybridResult as HybridResult, SearchIndex as SearchIndex, hybrid_search as hybrid_search
from ._lexical import LexicalIndex as LexicalIndex
from ._ngram_index import NGramIndex as NGramIndex, Successors as Successors
from ._ngram_scorer import NGramScorer as NGramScorer, ScoredDocument as ScoredDocument
from ._ngram_weight import ngram_weight as ngram_weight
from ._pseudo_queries import pseudo_queries as pseudo_queries
from ._shards import StoredBank as StoredBank, load_bank as load_bank
from ._topk import top_k as top_k
