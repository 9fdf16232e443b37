"""Records of any form to turns, turns to text by a template, text to ids and labels."""
