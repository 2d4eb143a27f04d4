"""One file a data set, each a `neuroenc.data.Dataset`; other packages add their own by entry points."""
