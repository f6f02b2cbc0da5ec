"""Read-only pages over the tables and the ledger: what visitors do now, any table, and the pipeline itself."""
