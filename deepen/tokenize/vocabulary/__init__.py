"""The vocabulary: does it fit, how it grows, and what that brings."""
