//! What the test guest and the VMM agree on: control pages, work orders, the page pattern.
