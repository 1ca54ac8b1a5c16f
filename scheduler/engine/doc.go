// Package engine places instances on nodes: it keeps a picture of what every node has free, finds the node that is best
// for one more instance, or says why there is none. It is pure: it does no I/O and knows no clock, and the same calls give
// the same answers.
package engine
