// `papers book` puts the glossary's definitions and the bibliography's entries here, by page and anchor.
const PREVIEWS = {};
