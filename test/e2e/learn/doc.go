// Package learn lets the learner of congestion controllers choose for clients behind links that differ: real connections, the
// kernel's own controllers, and emulated links.
package learn
