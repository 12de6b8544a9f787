// Package paths puts clients behind emulated links that differ: the learner of congestion controllers chooses for them, and
// the diagnosis finds what makes them slow. Connections, controllers and measurements are the kernel's own.
package paths
