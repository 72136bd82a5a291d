"""Many documents at once: columns, code points, words, and the spans that move with an edited text."""
