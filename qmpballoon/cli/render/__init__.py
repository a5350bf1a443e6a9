"""What the command shows: samples and reports as charts, tables, bars and sentences."""
