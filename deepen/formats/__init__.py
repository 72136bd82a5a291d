"""Every file that deepen writes: reader and writer side by side, without torch."""
