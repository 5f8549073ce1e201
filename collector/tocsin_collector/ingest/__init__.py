"""Where agents come in: certificates, enrolment, and the stream that carries their frames."""
