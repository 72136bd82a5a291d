"""How a model computes: precision, attention and boundaries of documents, recomputation, compilation, copies."""
