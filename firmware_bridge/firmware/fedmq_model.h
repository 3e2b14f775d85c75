/* fedmq_model: runs a model that came as data: checked, in integers, out of flash.
 *
 * Copy fedmq_model.h and fedmq_model.c into your project. C99; integer arithmetic only, nothing allocated, no library,
 * no variables of its own. The image is what `fedmq export --sensor-image` writes; docs/frames.md has it byte by byte.
 * What comes out is the same to the last bit as on the gateway (fedmq_models.sensor_image).
 *
 *     static int8_t work[2048];
 *
 *     fedmq_model model;
 *     if (fedmq_model_open(&model, image, length) == FEDMQ_MODEL_OK && model.work <= sizeof work) {
 *         for each number i of a window: work[i] = fedmq_model_input(&model, i, sample);
 *         const int8_t *out = fedmq_model_run(&model, work);
 *         int32_t score = fedmq_model_score(&model, work, out);
 *     }
 *
 * A window is |samples| of each of |channels|: the first of all of them, then the second of all of them, ... You can
 * give each sample as it is measured: no second copy of the window is needed.
 */
#ifndef FEDMQ_MODEL_H
#define FEDMQ_MODEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    FEDMQ_MODEL_FORMAT = 1,
    FEDMQ_MODEL_LAYERS_MAX = 16,

    /* Results: the outputs as they are, or the sum of their squared differences from the input. */
    FEDMQ_OUTPUTS = 0,
    FEDMQ_ANOMALY = 1
};

/* What is wrong with an image. Numbers are those of an ack on the line. */
typedef enum {
    FEDMQ_MODEL_OK = 0,
    FEDMQ_MODEL_CHECKSUM = 6,  /* its CRC-32 does not hold */
    FEDMQ_MODEL_MALFORMED = 7, /* another format, parts that do not fit together, an accumulator that could overflow */
    FEDMQ_MODEL_SELF_TEST = 9  /* this machine computes something else than the gateway */
} fedmq_model_fault;

typedef struct {
    /* Yours to read. */
    uint32_t id;           /* the CRC-32 at its end, by which the line names it */
    uint32_t version;      /* of its lineage: for people */
    uint32_t rate_mhz;     /* samples per second of one channel, times 1000, that it is for; 0 for any */
    uint32_t sample_scale; /* bits of the float32: units of a step that it is for; 0 for any */
    uint32_t result_scale; /* bits of the float32: what a step of a result is worth */
    uint32_t inputs;       /* channels * samples */
    uint32_t outputs;
    uint32_t work; /* bytes that running it takes: inputs, then two buffers as wide as the widest layer */
    uint16_t samples;
    uint16_t hop; /* samples from one window's start to the next one's, no fewer than |samples| */
    uint8_t channels;
    uint8_t result; /* FEDMQ_OUTPUTS or FEDMQ_ANOMALY */

    /* The library's own. */
    const uint8_t *image;
    const uint8_t *scalers;
    const uint8_t *rows;
    const uint8_t *test;
    uint32_t widest;
    uint16_t scaler_count;
    uint8_t layers;
    uint8_t fraction_bits;
} fedmq_model;

/* fedmq_model_open
 *
 * Checks all of an image of |length| bytes, which must stay where it is as long as the model is used. What passes can
 * be run on any samples: no sum overflows, nothing outside of image and work is touched, whoever wrote it. Takes a time
 * that grows with |length|: twice through all of it.
 */
fedmq_model_fault fedmq_model_open(fedmq_model *m, const uint8_t *image, size_t length);

/* fedmq_model_input
 *
 * One sample to one input. |i|: its place in the window, below model.inputs.
 */
int8_t fedmq_model_input(const fedmq_model *m, uint32_t i, int16_t sample);

/* fedmq_model_run
 *
 * |work|: model.work bytes, of which the first model.inputs are the window's inputs; they stay as they are. Returns the
 * outputs, model.outputs of them, inside |work|.
 */
const int8_t *fedmq_model_run(const fedmq_model *m, int8_t *work);

/* fedmq_model_score
 *
 * The sum of squared differences of inputs and outputs; 0 if that is not the model's result.
 */
int32_t fedmq_model_score(const fedmq_model *m, const int8_t *work, const int8_t *out);

/* fedmq_model_self_test
 *
 * Runs the window that the image has with it, and compares bit for bit. |work| as above; what was in it is lost.
 */
fedmq_model_fault fedmq_model_self_test(const fedmq_model *m, int8_t *work);

/* fedmq_crc32
 *
 * CRC-32/ISO-HDLC, as in Ethernet and zip. Put your hardware's in its place if it has one.
 */
uint32_t fedmq_crc32(const uint8_t *bytes, size_t length);

#ifdef __cplusplus
}
#endif
#endif
