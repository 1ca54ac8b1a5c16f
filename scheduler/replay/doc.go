// Package replay places the workload of a recorded cluster anew, to compare policies and to plan capacity. It reads lists
// of nodes and pods in the form of the public GPU cluster traces (ReadNodes, ReadPods), and runs them by one of two
// methods: Overload submits pods in random order until they ask for more than there is, Arrivals follows the recorded
// times. What places is behind Placer; Scan is the plain one.
package replay
