"""Files and programs that a deployment needs; a local object store among them."""
