"""Rules for CPUs: one file a rule, and the register tile they share."""
