// Package packaging holds the tests of what operators install: the package, its units, its
// example configuration and its manual.
package packaging
