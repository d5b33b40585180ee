"""Text on the host: tokenizing, incremental detokenizing, stop strings, chat templates."""
