%%% The native library: stubs, specs and -on_load, nothing else.
%%%
%%% Only py, py_reactor, py_reactor_context, the processes of listeners, what looks at contexts from outside
%%% and the application's start call it.
-module(py_nif).

%% Python: interpreter, calls, log
-export([start_python/4, start_calls/1, stop_calls/0]).
-export([submit/1, cast/1, cancel/1]).
-export([log_register/0, log_taken/1]).

%% Functions: Erlang from Python
-export([functions_serve/0, functions_set/1, function_begin/1, function_answer/2]).

%% Reactor: contexts and connections
-export([context_start/2, context_stop/1, context_interrupt/1, context_running/1]).
-export([context_busy_ms/1, context_stats/1]).
-export([handoff/4, ready/2]).

%% Slow callbacks
-export([watch_jobs/1, context_look/3]).

%% Single connections
-export([connection_send/2, connection_send_large/2, connection_push/2, connection_close/1]).
-export([connection_monitor/1, connection_demonitor/1]).

%% Listeners
-export([recipe_new/2, recipe_prepare/2]).
-export([listener_new/3, listener_own/1, listener_open/1, listener_close/2]).
-export([listener_address/1, listener_state/1, listener_set_stage/2, listener_stats/1]).
-export([listener_set_max_connections/2, listener_max_connections/1, listener_await/3]).
-export([acceptor_open/1, acceptor_accept/2, acceptor_close/1]).
%% Loading
-export([keep_types/0]).

-on_load(load/0).

-export_type([ticket/0, work/0, failure/0, function_call/0, answer/0, context/0]).
-export_type([connection/0, monitor/0, recipe/0, listener/0, acceptor/0, stage/0]).
-export_type([glance/0, seen/0]).

-type ticket() :: reference().
-type work() ::
    {exec, Code :: binary()}
    | {eval, Expression :: binary(), Locals :: map()}
    | {call, Module :: binary(), Function :: binary(), Args :: list(), Kwargs :: map()}.
-type function_call() :: reference().
-type answer() ::
    {ok, Result :: term()}
    | {unknown, Text :: binary()}
    | {bad_arity, Text :: binary()}
    | {raised, {error | exit | throw, Reason :: term(), Text :: binary(), Stacktrace :: binary()}}.
-type context() :: reference().
-type connection() :: reference().
-type glance() :: #{
    job := pos_integer(),
    age_ms := non_neg_integer(),
    callback := binary() | none,
    fd := non_neg_integer() | none
}.
-type seen() ::
    ended
    | {ok, #{
        job := pos_integer(),
        age_ms := non_neg_integer(),
        callback := binary() | none,
        fd := non_neg_integer() | none,
        protocol := binary(),
        peer := binary(),
        stack := binary(),
        %% How long it took to have the GIL.
        waited_ms := non_neg_integer()
    }}
    | {error, Traceback :: binary()}.
-type monitor() :: reference().
-type recipe() :: reference().
-type listener() :: reference().
-type acceptor() :: reference().
-type stage() :: serving | draining | ending.
-type failure() :: {Class :: binary(), Message :: binary(), Traceback :: binary()}.

%%--------------------------------------------------------------------------------------------------
%% Python: interpreter, calls, log

%% Starts Python, or sets up a running one again. An empty program is that of the build.
-spec start_python(binary(), binary(), [binary()], binary()) -> ok | {error, binary()}.
start_python(_Program, _PackagePath, _PythonPath, _LogLevel) ->
    erlang:nif_error({not_loaded, ?MODULE}).

-spec start_calls(pos_integer()) -> ok | {error, binary()}.
start_calls(_Threads) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% What waits is answered {error, stopped}, what runs is interrupted.
-spec stop_calls() -> ok.
stop_calls() ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% The answer comes as the message {Ticket, Answer}.
-spec submit(work()) -> {ok, ticket()} | {error, overload | not_running | failure()}.
submit(_Work) ->
    erlang:nif_error({not_loaded, ?MODULE}).

-spec cast(work()) -> ok | {error, overload | not_running | failure()}.
cast(_Work) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% True if no answer was sent and none will be; false if the message is there or on its way.
-spec cancel(ticket()) -> boolean().
cancel(_Ticket) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% The calling process gets {py_log, Level, Text, Metadata} and must acknowledge with log_taken/1.
-spec log_register() -> ok.
log_register() ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% Returns how many lines were dropped since the last time.
-spec log_taken(pos_integer()) -> Dropped :: non_neg_integer().
log_taken(_Count) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%%--------------------------------------------------------------------------------------------------
%% Functions: Erlang from Python

%% The calling process gets {py_function, Call} for each call, and {py_function_over, Pid} when nobody
%% waits any more for the process that began it.
-spec functions_serve() -> ok.
functions_serve() ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% These names, and no others, can be imported.
-spec functions_set(Names :: [binary()]) -> ok.
functions_set(_Names) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% The calling process is that of the call. Abandoned if nobody waits for an answer.
-spec function_begin(function_call()) -> {Name :: binary(), Args :: list()} | abandoned.
function_begin(_Call) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% Whether somebody still waited for it: only the first answer counts.
-spec function_answer(function_call(), answer()) -> boolean().
function_answer(_Call, _Answer) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%%--------------------------------------------------------------------------------------------------
%% Reactor: contexts and connections

%% Starts the worker of the calling process, which gets {py_worker, started} or
%% {py_worker, {failed, Text}}. A negative linger means: never park.
-spec context_start(MaxConnections :: pos_integer(), LingerMs :: integer()) ->
    {ok, context()} | {error, binary()}.
context_start(_MaxConnections, _LingerMs) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% When everything is closed the process gets {py_worker, stopped}.
-spec context_stop(context()) -> ok.
context_stop(_Context) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% Raises erlang.Interrupted in the callback that is running, if there is one.
-spec context_interrupt(context()) -> ok.
context_interrupt(_Context) ->
    erlang:nif_error({not_loaded, ?MODULE}).

-spec context_running(context()) -> boolean().
context_running(_Context) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% For how long the present turn of the worker has been going on; 0 while it sleeps.
-spec context_busy_ms(context()) -> non_neg_integer().
context_busy_ms(_Context) ->
    erlang:nif_error({not_loaded, ?MODULE}).

-spec context_stats(context()) -> #{atom() => non_neg_integer() | #{atom() => non_neg_integer()}}.
context_stats(_Context) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% Duplicates the descriptor. The answer comes as the message {Ticket, ok | {error, Reason}}.
-spec handoff(context(), Fd :: integer(), Info :: map(), Nodelay :: boolean()) ->
    {ok, ticket()} | {error, py_reactor_context:reason()}.
handoff(_Context, _Fd, _Info, _Nodelay) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% Tells the worker of a parked connection what enif_select said. False if it is no connection.
-spec ready(connection(), ready_input | ready_output) -> boolean().
ready(_Connection, _Readiness) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%%--------------------------------------------------------------------------------------------------
%% Slow callbacks

%% The calling process gets `{py_slow, Context :: pid(), glance()}' of each job of a worker that has been
%% running for so long, and again whenever it has taken twice as long; nobody else does from here on.
%% 0: nobody.
-spec watch_jobs(SlowMs :: non_neg_integer()) -> ok.
watch_jobs(_SlowMs) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% Has Python's main thread look at a job. The answer comes as the message {py_look, Tag, seen()}, as
%% soon as the GIL can be had.
-spec context_look(context(), Job :: pos_integer(), Tag :: non_neg_integer()) -> ok.
context_look(_Context, _Job, _Tag) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%%--------------------------------------------------------------------------------------------------
%% Single connections

%% Runs message_received on the protocol of the connection.
-spec connection_send(connection(), term()) ->
    ok | {error, closed | overload | {bad_message, Explanation :: binary()}}.
connection_send(_Connection, _Message) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% The same on a dirty scheduler, for terms that take long to read.
-spec connection_send_large(connection(), term()) ->
    ok | {error, closed | overload | {bad_message, Explanation :: binary()}}.
connection_send_large(_Connection, _Message) ->
    erlang:nif_error({not_loaded, ?MODULE}).

-spec connection_push(connection(), iodata()) -> ok | {error, closed | dropped | overload | too_large}.
connection_push(_Connection, _Data) ->
    erlang:nif_error({not_loaded, ?MODULE}).

-spec connection_close(connection()) -> ok | {error, closed}.
connection_close(_Connection) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% The calling process gets {'DOWN', Monitor, connection, Connection, Reason} once.
-spec connection_monitor(connection()) -> monitor().
connection_monitor(_Connection) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% What became of the message: none will be sent, it is being sent this moment, or it was.
-spec connection_demonitor(monitor()) -> unsent | sending | sent.
connection_demonitor(_Monitor) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%%--------------------------------------------------------------------------------------------------
%% Listeners

%% How the protocols of a listener are made. Contexts forget it when it is collected.
-spec recipe_new(
    undefined | {Module :: binary(), Name :: binary(), Kwargs :: map()}, Info :: map()
) -> {ok, recipe()} | {error, {bad_option, info | protocol}}.
recipe_new(_Protocol, _Info) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% Imports it in a context. The answer comes as {Ticket, ok | {error, Reason}}; no_context is that of a
%% context that has ended, or takes no messages now.
-spec recipe_prepare(recipe(), context()) -> ticket().
recipe_prepare(_Recipe, _Context) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% Nothing is opened yet. The name is for the log.
-spec listener_new(Name :: binary(), recipe(), py_reactor_listener_options:checked()) -> listener().
listener_new(_Name, _Recipe, _Options) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% When the calling process ends the socket is closed and the connections end.
-spec listener_own(listener()) -> ok.
listener_own(_Listener) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% Opens the socket, after the first time with the port that it had.
-spec listener_open(listener()) -> ok | {error, inet:posix()}.
listener_open(_Listener) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% Accepts what waits, as far as there are places, and closes the socket.
-spec listener_close(listener(), [context()]) -> ok.
listener_close(_Listener, _Contexts) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% Where it listens, or last did.
-spec listener_address(listener()) ->
    {inet:ip_address(), inet:port_number()} | {local, binary()}.
listener_address(_Listener) ->
    erlang:nif_error({not_loaded, ?MODULE}).

-spec listener_state(listener()) -> {open | closed, stage()}.
listener_state(_Listener) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% Has every context look at its connections.
-spec listener_set_stage(listener(), stage()) -> ok.
listener_set_stage(_Listener, _Stage) ->
    erlang:nif_error({not_loaded, ?MODULE}).

-spec listener_stats(listener()) -> #{atom() => term()}.
listener_stats(_Listener) ->
    erlang:nif_error({not_loaded, ?MODULE}).

-spec listener_set_max_connections(listener(), non_neg_integer() | infinity) -> ok.
listener_set_max_connections(_Listener, _MaxConnections) ->
    erlang:nif_error({not_loaded, ?MODULE}).

-spec listener_max_connections(listener()) -> non_neg_integer() | infinity.
listener_max_connections(_Listener) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% {Ticket, Active} comes as soon as the number of connections lies between the two, both included.
-spec listener_await(listener(), non_neg_integer(), non_neg_integer() | infinity) -> ticket().
listener_await(_Listener, _From, _To) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% A duplicate of the socket for the calling process, with which it is closed.
-spec acceptor_open(listener()) -> {ok, acceptor()} | closed | {error, inet:posix()}.
acceptor_open(_Listener) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% Accepts a batch; py_reactor_acceptor says what comes after each answer.
-spec acceptor_accept(acceptor(), [context()]) ->
    armed | lent | more | full | {pause, atom()} | closed.
acceptor_accept(_Acceptor, _Contexts) ->
    erlang:nif_error({not_loaded, ?MODULE}).

-spec acceptor_close(acceptor()) -> ok.
acceptor_close(_Acceptor) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%%--------------------------------------------------------------------------------------------------
%% Loading

-spec load() -> ok | {error, term()}.
load() ->
    case erlang:load_nif(filename:join(priv_dir(), "py_nif"), 0) of
        ok ->
            %% It waits for the end of the loading, before which nothing can be allocated.
            _ = spawn(?MODULE, keep_types, []),
            ok;
        {error, _} = Error ->
            Error
    end.

%% @doc Has the resource types outlive this module: threads that do not end with it use them.
-spec keep_types() -> ok.
keep_types() ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% Without the application's folder on the code path, priv is beside the folder of this module.
priv_dir() ->
    case code:priv_dir(py_reactor) of
        {error, bad_name} ->
            filename:join([filename:dirname(code:which(?MODULE)), "..", "priv"]);
        Dir ->
            Dir
    end.
