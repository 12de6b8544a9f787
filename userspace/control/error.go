package control

// AsError gives any error of the operations the form in which the daemon answers it, so that
// the CLI says the same whether it asked the daemon or did the work itself.
func AsError(err error) *Error { return asError(err) }
