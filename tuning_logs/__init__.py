"""Tuning records that ship with tvmconv, one folder for each target fingerprint; read only."""
