"""A fake QEMU that answers word for word, and real ones to hold it against."""
