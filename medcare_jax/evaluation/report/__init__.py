"""What a person reads of scores: tables, charts and pages from plain numbers; no model."""
