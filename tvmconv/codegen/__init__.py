"""From object code to a linked library: C run time, header, linker, object check."""
