"""The AWS Lambda function: one handler, told by the event which trigger it is. See ``docs/lambda.md``.

The handler is ``streamproc.runtimes.aws_lambda.entry.handler``.
"""
