"""Where images come from: MRC stacks, RELION tables, arrays."""
