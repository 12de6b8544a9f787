package transport

import "errors"

// ErrPlain says that this build lets secrets into the tables of h2.
var ErrPlain = errors.New("this build repeats Set-Cookie and its like over h2 by reference to the connection's table: it was made without the patched x/net (build with make)")

// secret says of a field's name, in lower case, that its value is for the client alone: it enters no table of h2.
func secret(name string) bool {
	switch name {
	case "set-cookie", "cookie",
		"authorization", "www-authenticate", "authentication-info",
		"proxy-authorization", "proxy-authenticate", "proxy-authentication-info":
		return true
	}
	return false
}
