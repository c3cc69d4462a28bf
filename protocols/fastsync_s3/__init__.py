"""Amazon S3 and servers that speak its protocol, behind ``s3://BUCKET/PREFIX`` locations."""
