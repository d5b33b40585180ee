"""Text on the host: tokenizing, incremental detokenizing, stop strings, chat templates."""

import os

# transformers advises every user to install PyTorch, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
