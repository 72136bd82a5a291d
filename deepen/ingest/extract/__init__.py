"""Text out of office files, PDFs and web pages, in a guarded process."""
