"""Diagnosis of an installation: its packages, codecs, devices and disks."""
