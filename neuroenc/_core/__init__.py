"""Small shared tools below every room: errors, atomic files, hashes, provenance, memory, progress."""
