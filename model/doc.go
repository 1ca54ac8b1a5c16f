// Package model says what exists in Gantry: apps and their versions, instances, deployments, nodes, events,
// the quantities they are measured in, and the rules they must keep.
//
// Everything here is a plain value. Nothing does I/O, reads a clock or draws a random number: callers pass those
// in. The package imports only the standard library, and every other room imports it.
//
// Desired and observed state are apart. A Spec is what a user wrote and is stored exactly so; defaults are applied
// when it is read, by Spec.WithDefaults. What became of it is in Instance, Deployment and Node, whose field comments
// name the one room that writes each field.
//
// Read next: spec.go for what a user can ask for, instance.go for the lifecycle of one copy.
package model
