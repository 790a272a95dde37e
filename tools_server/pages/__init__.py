"""Web pages and PDF files to readable text, in worker processes."""
