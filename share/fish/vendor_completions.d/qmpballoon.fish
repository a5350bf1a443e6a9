# fish loads this when a word of the command is first completed. The command itself knows
# what its words are.
_QMPBALLOON_COMPLETE=fish_source qmpballoon | source
